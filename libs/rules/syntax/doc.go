// Package syntax parses the SQL of a sync config into a tree in which every
// node knows its exact place in the text.
//
// It accepts more than any edition supports (GROUP BY, LIKE, outer joins, …)
// so that the error about it can say what and where; what has no place in the
// tree is a syntax error.
//
// Invariants:
//
//   - No input makes Parse panic, and recursion is bounded by MaxDepth, except
//     for chains of left-associative operators, whose tree is as deep as the
//     chain is long (FuzzParse).
//   - Spans lie within the text and children lie within their parents, lists'
//     and subqueries' parentheses belonging to the parent (FuzzParse,
//     TestParse).
package syntax
