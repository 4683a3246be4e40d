// Package eval builds expressions: closures over column offsets that compute
// one SQLite value from a row, from request data, or from both, without
// looking up a name, reflecting or parsing anything again.
//
// The caller has resolved all names: it makes leaves (Const, Column, Request,
// Each) and combines them (Functions' Apply, Binary, Cast, Member, …), having
// checked with Function, Binary and CastType that the thing exists in the
// edition. Building never fails.
//
// Invariants:
//
//   - An Expr is immutable and safe for concurrent use, given an Env each.
//   - It is a function of its Env: equal input, equal output.
//   - Comparing columns with request values does not allocate
//     (TestCompareDoesNotAllocate).
//   - No value makes an Expr panic (FuzzFunctions).
//   - An evaluation error is an *Error and never quotes row data (D10).
//   - Every function and operator gives what conformance vectors record
//     (TestVectors).
package eval
