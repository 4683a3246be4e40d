// Package plan is a sync config after all names are resolved: which rows of
// which tables go to which buckets, which parameter indexes there are, and how
// a request finds its buckets. It is data only; package rules turns it into
// functions.
//
// Rules and streams of all editions become the same few things:
//
//	Source    the buckets of one shape: Rows that fill them, keys that name them
//	Index     the parameter rows that a request looks up by key
//	Querier   how a request gets the keys of a Source: filters, steps, parameters
//
// Invariants:
//
//   - Two expressions, matches, rows or indexes mean the same if their keys
//     (AppendKey) are equal, and so do definitions with one Identity
//     (TestIdentity of package rules).
//   - Steps of a querier refer to earlier steps only (TestNaive and FuzzCompile
//     of package rules).
//
// Its tests are those of package rules, which has plans to look at: TestGolden
// shows them as format.go writes them.
package plan
