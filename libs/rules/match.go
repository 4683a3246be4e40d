package rules

import (
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/eval"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// matcher finds the keys under which a row counts: as fragments, already
// joined with commas.
type matcher struct {
	each    []eval.Expr
	options eval.Options
	keys    int
	// The usual case: conditions, and one expression for each key.
	filters []eval.Expr
	exprs   []eval.Expr // by key
	// Otherwise the whole match.
	general *boundMatch
}

type boundMatch struct {
	op     plan.MatchOp
	key    int
	strict bool
	expr   eval.Expr
	args   []*boundMatch
}

func newMatcher(m *plan.Match, each []*plan.Expr, keys int, b plan.Binder) *matcher {
	out := &matcher{keys: keys, options: b.Options}
	for _, e := range each {
		out.each = append(out.each, e.Bind(b))
	}
	exprs := make([]eval.Expr, keys)
	if out.simple(m, b, exprs) {
		complete := true
		for _, e := range exprs {
			complete = complete && e != nil
		}
		if complete {
			out.exprs = exprs
			return out
		}
	}
	out.filters = nil
	out.general = bindMatch(m, b)
	return out
}

// simple collects the conditions and keys of a match that has one assignment
// at most.
func (mt *matcher) simple(m *plan.Match, b plan.Binder, exprs []eval.Expr) bool {
	switch {
	case m == nil:
		return true
	case m.Op == plan.Where:
		mt.filters = append(mt.filters, m.Expr.Bind(b))
		return true
	case m.Op == plan.Equal && exprs[m.Key] == nil:
		exprs[m.Key] = m.Expr.Bind(b)
		return true
	case m.Op == plan.All:
		for _, a := range m.Args {
			if !mt.simple(a, b, exprs) {
				return false
			}
		}
		return true
	}
	return false
}

func bindMatch(m *plan.Match, b plan.Binder) *boundMatch {
	if m == nil {
		return &boundMatch{op: plan.All}
	}
	out := &boundMatch{op: m.Op, key: m.Key, strict: m.Strict}
	if m.Expr != nil {
		out.expr = m.Expr.Bind(b)
	}
	for _, a := range m.Args {
		out.args = append(out.args, bindMatch(a, b))
	}
	return out
}

// run calls found with the fragments of the keys for each assignment that
// makes the match true. The bytes are valid during the call.
func (mt *matcher) run(s *scratch, found func(keys []byte) error) error {
	if len(mt.each) == 0 {
		return mt.row(s, found)
	}
	return mt.product(s, 0, found)
}

// product runs over the combinations of the rows of each json_each.
func (mt *matcher) product(s *scratch, i int, found func(keys []byte) error) error {
	if i == len(mt.each) {
		if s.products++; s.products > maxTuples {
			return fmt.Errorf("more than %d combinations of array elements", maxTuples)
		}
		return mt.row(s, found)
	}
	if i == 0 {
		s.products = 0
		s.env.Each = append(s.env.Each[:0], make([]eval.EachRow, len(mt.each))...)
	}
	v, err := mt.each[i](&s.env)
	if err != nil {
		return err
	}
	rows, err := eval.JSONEach(v, mt.options, nil)
	if err != nil {
		return err
	}
	for _, r := range rows {
		s.env.Each[i] = r
		if err := mt.product(s, i+1, found); err != nil {
			return err
		}
	}
	return nil
}

func (mt *matcher) row(s *scratch, found func(keys []byte) error) error {
	if mt.general != nil {
		return mt.all(s, found)
	}
	for _, f := range mt.filters {
		v, err := f(&s.env)
		if err != nil {
			return err
		}
		if !value.Truthy(v) {
			return nil
		}
	}
	s.keys = s.keys[:0]
	for i, e := range mt.exprs {
		v, err := e(&s.env)
		if err != nil {
			return err
		}
		if v.IsNull() {
			return nil
		}
		if i > 0 {
			s.keys = append(s.keys, ',')
		}
		var ok bool
		if s.keys, ok = appendFragment(s.keys, v); !ok {
			return nil
		}
	}
	return found(s.keys)
}

// assignment has the fragments of keys; "" is not assigned.
type assignment []string

func (mt *matcher) all(s *scratch, found func(keys []byte) error) error {
	list, err := mt.general.assignments(&s.env, mt.keys)
	if err != nil {
		return err
	}
next:
	for _, a := range list {
		s.keys = s.keys[:0]
		for i, f := range a {
			if f == "" {
				continue next
			}
			if i > 0 {
				s.keys = append(s.keys, ',')
			}
			s.keys = append(s.keys, f...)
		}
		if err := found(s.keys); err != nil {
			return err
		}
	}
	return nil
}

func (m *boundMatch) assignments(env *eval.Env, keys int) ([]assignment, error) {
	switch m.op {
	case plan.All:
		list := []assignment{make(assignment, keys)}
		for _, a := range m.args {
			other, err := a.assignments(env, keys)
			if err != nil {
				return nil, err
			}
			if list = cross(list, other); len(list) == 0 {
				return nil, nil
			}
		}
		return list, nil
	case plan.Any:
		var list []assignment
		for _, a := range m.args {
			other, err := a.assignments(env, keys)
			if err != nil {
				return nil, err
			}
			list = append(list, other...)
		}
		return list, nil
	}
	v, err := m.expr(env)
	if err != nil {
		return nil, err
	}
	return m.leaf(v, keys)
}

func (m *boundMatch) leaf(v model.Value, keys int) ([]assignment, error) {
	assign := func(f []byte) assignment {
		a := make(assignment, keys)
		a[m.key] = string(f)
		return a
	}
	switch m.op {
	case plan.Where:
		if value.Truthy(v) {
			return []assignment{make(assignment, keys)}, nil
		}
	case plan.Equal:
		if f, ok := appendFragment(nil, v); ok && !v.IsNull() {
			return []assignment{assign(f)}, nil
		}
	case plan.Among:
		elems, err := rowElements(v, m.strict)
		if err != nil {
			return nil, err
		}
		var list []assignment
		for _, e := range elems {
			f, _ := appendRaw(nil, e)
			list = append(list, assign(f))
		}
		return list, nil
	}
	return nil, nil
}

// cross combines two lists of assignments; keys that both have must agree.
func cross(xs, ys []assignment) []assignment {
	var out []assignment
	for _, x := range xs {
	next:
		for _, y := range ys {
			a := make(assignment, len(x))
			for i := range x {
				switch {
				case x[i] == "" || x[i] == y[i]:
					a[i] = y[i]
				case y[i] == "":
					a[i] = x[i]
				default:
					continue next
				}
			}
			out = append(out, a)
		}
	}
	return out
}
