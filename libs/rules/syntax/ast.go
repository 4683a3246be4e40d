package syntax

// Span is a half-open range of byte offsets into the SQL text.
type Span struct{ Start, End int }

// Cover returns the smallest span over s and t.
func (s Span) Cover(t Span) Span { return Span{min(s.Start, t.Start), max(s.End, t.End)} }

// Error is a fault in the SQL text.
type Error struct {
	Msg string
	Span
}

func (e Error) Error() string { return e.Msg }

// Node is any part of the tree that has a place in the text.
type Node interface {
	// At is the node's exact place. Parentheses around an expression, a
	// subquery or a list belong to the surrounding node, not to it.
	At() Span
}

// Loc is the place of a node; every node embeds it.
type Loc struct{ Span Span }

// At implements Node.
func (l Loc) At() Span { return l.Span }

// Ident is an identifier. Name is what it means (unquoted: lower-cased;
// quoted: as written, "" unescaped).
type Ident struct {
	Loc
	Name   string
	Quoted bool
	// Folded: unquoted and written with capitals (worth a warning).
	Folded bool
}

// Unsupported is a clause that parses but that no edition supports. Its place
// is the clause's content (LIMIT ⟦5⟧, ORDER BY ⟦id⟧, FOR ⟦UPDATE⟧); for
// DISTINCT and statements that are not a SELECT the whole statement; in a call the
// function's name.
type Unsupported struct {
	Loc
	What string // in upper case, such as "GROUP BY" or "ORDER BY"
}

// Select is a SELECT statement or subquery, without its parentheses.
type Select struct {
	Loc
	Columns []ResultColumn // may be empty
	From    []Source       // in text order; empty without FROM
	Where   Expr           // or nil
	// Unsupported clauses, in text order: DISTINCT, GROUP BY, HAVING, WINDOW,
	// ORDER BY, LIMIT, OFFSET, FETCH, FOR. For a statement of another kind (WITH,
	// VALUES, INSERT, UNION, INTERSECT, EXCEPT, …) the only entry is that keyword
	// with the span of the whole statement, and NotSelect is set.
	Unsupported []Unsupported
	NotSelect   bool
	// More are the statements after the first (top level only): legacy rules
	// reject them, streams ignore them.
	More []*Select
}

// ResultColumn is one item of a select list.
type ResultColumn struct {
	Loc          // from the expression to the end of the alias
	Expr  Expr   // *Star for * and t.*
	Alias *Ident // or nil
}

// JoinKind says how a source follows the previous one.
type JoinKind uint8

const (
	First JoinKind = iota // the first source
	Comma
	Inner // JOIN, INNER JOIN
	Left
	Right
	Full
	Cross
)

func (k JoinKind) String() string {
	return [...]string{"", ",", "INNER JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "CROSS JOIN"}[k]
}

// Source is one item of FROM: exactly one of Table, Subquery and Call is set.
type Source struct {
	Loc               // the item with its alias, without the join words
	Table    *Table   //
	Subquery *Select  //
	Call     *Call    // json_each(…), table-valued
	Alias    *Ident   // or nil
	Columns  []Ident  // column aliases: AS s(a, b)
	Join     JoinKind //
	JoinLoc  Span     // the join's words ("LEFT OUTER JOIN"), if Join ≥ Inner
	Natural  bool
	On       Expr    // or nil
	Using    []Ident // USING (a, b); UsingLoc is the whole clause
	UsingLoc Span
	// Unsupported: LATERAL, WITH ORDINALITY, TABLESAMPLE, VALUES lists.
	Unsupported []Unsupported
}

// Table is a table name, perhaps with a schema (which may hold a connection
// tag: "conn.schema"). More than two parts are Extra in front of Schema.
type Table struct {
	Loc
	Extra  []Ident
	Schema *Ident // or nil
	Name   Ident
}

// Expr is an expression: one of the pointer types below.
type Expr interface {
	Node
	expr()
}

type (
	// Null is the literal NULL.
	Null struct{ Loc }

	// Bool is the literal TRUE or FALSE.
	Bool struct {
		Loc
		Value bool
	}

	// Integer is an integer literal of any size; Digits may start with a minus
	// (a minus sign directly before a number is part of the literal).
	Integer struct {
		Loc
		Digits string
	}

	// Real is a literal with a decimal point.
	Real struct {
		Loc
		Value float64
	}

	// String is a text literal, unescaped.
	String struct {
		Loc
		Value string
	}

	// Param is $1, which no edition supports.
	Param struct {
		Loc
		Text string
	}

	// Star is *, in a select list or as the argument of a call.
	Star struct {
		Loc
		Table *Ident // of t.*, or nil
	}

	// Column is a column reference: c, t.c or s.t.c.
	Column struct {
		Loc
		Schema *Ident // or nil
		Table  *Ident // or nil
		Name   Ident
	}

	// Unary is -x, +x or NOT x; Op is "-", "+" or "NOT".
	Unary struct {
		Loc
		Op    string
		OpLoc Span
		X     Expr
	}

	// Binary is x op y. Op is in upper case and normal form: AND OR = != < > <=
	// >= + - * / % || && and, supported by no edition or only some: & | << >> ^
	// # ~ ~* !~ !~* @> <@ ? ?| ?& @@ #- #>> LIKE ILIKE "NOT LIKE" "NOT ILIKE"
	// "SIMILAR TO" "NOT SIMILAR TO" "IS DISTINCT FROM" "IS NOT DISTINCT FROM".
	Binary struct {
		Loc
		Op    string
		OpLoc Span
		X, Y  Expr
	}

	// Is is x IS [NOT] NULL, TRUE or FALSE (also ISNULL, NOTNULL).
	Is struct {
		Loc
		X    Expr
		Not  bool
		What IsWhat
	}

	// In is x [NOT] IN y. Y is any expression: *Subquery for (SELECT …), *List
	// for (a, b), *Array for ARRAY[…], *Call of "row" for ROW(…).
	In struct {
		Loc
		X     Expr
		Not   bool
		Y     Expr
		OpLoc Span
	}

	// Between is x [NOT] BETWEEN low AND high.
	Between struct {
		Loc
		X, Low, High Expr
		Not          bool
	}

	// Case is CASE [operand] WHEN … THEN … [ELSE …] END.
	Case struct {
		Loc
		Operand Expr // or nil
		Whens   []When
		Else    Expr // or nil
	}

	// Cast is CAST(x AS type), x::type or type 'text'.
	Cast struct {
		Loc
		X    Expr
		Type Type
	}

	// Member is x -> key or x ->> key, where key is a text or integer literal.
	// It binds tighter than all binary operators.
	Member struct {
		Loc
		X   Expr
		Op  string // "->" or "->>"
		Key Expr   // *String or *Integer
	}

	// Index is x[i]; no edition supports it.
	Index struct {
		Loc
		X, I Expr
	}

	// Call is f(args) or namespace.f(args), such as auth.user_id(). ROW(…) and
	// EXISTS (…) are calls of "row" and "exists".
	Call struct {
		Loc
		Namespace *Ident // or nil
		Name      Ident
		Args      []Expr // *Star for count(*)
		// Unsupported: DISTINCT, ORDER BY, FILTER, WITHIN GROUP, OVER.
		Unsupported []Unsupported
	}

	// Substring is substring(x from a for b); From or For may be nil, not both.
	Substring struct {
		Loc
		X, From, For Expr
	}

	// Array is ARRAY[…].
	Array struct {
		Loc
		Elems []Expr
	}

	// List is (a, b, …): two or more expressions in parentheses, or any number
	// on the right of IN. Its span is from the first to the last item.
	List struct {
		Loc
		Elems []Expr
	}

	// Subquery is a SELECT in expression position. Its span is the SELECT's.
	Subquery struct {
		Loc
		Select *Select
	}

	// Other is an expression that parses but that no edition supports: extract,
	// overlay, position, AT TIME ZONE, ARRAY(SELECT …), CURRENT_TIMESTAMP, ….
	Other struct {
		Loc
		What string // in upper case
	}
)

// When is one branch of a Case.
type When struct{ Cond, Then Expr }

// IsWhat is what an Is tests for.
type IsWhat uint8

const (
	IsNull IsWhat = iota
	IsTrue
	IsFalse
)

func (w IsWhat) String() string { return [...]string{"NULL", "TRUE", "FALSE"}[w] }

// Type is a type name. Name is lower-cased words, with a schema's dot if any;
// Plain is false if arguments (10), [] or a schema follow or precede: such a
// type is none of SQLite's five.
type Type struct {
	Loc
	Name  string
	Plain bool
}

func (*Null) expr()      {}
func (*Bool) expr()      {}
func (*Integer) expr()   {}
func (*Real) expr()      {}
func (*String) expr()    {}
func (*Param) expr()     {}
func (*Star) expr()      {}
func (*Column) expr()    {}
func (*Unary) expr()     {}
func (*Binary) expr()    {}
func (*Is) expr()        {}
func (*In) expr()        {}
func (*Between) expr()   {}
func (*Case) expr()      {}
func (*Cast) expr()      {}
func (*Member) expr()    {}
func (*Index) expr()     {}
func (*Call) expr()      {}
func (*Substring) expr() {}
func (*Array) expr()     {}
func (*List) expr()      {}
func (*Subquery) expr()  {}
func (*Other) expr()     {}
