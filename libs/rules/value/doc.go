// Package value computes with model.Value as the reference engine does: SQLite
// storage classes, but text counted in UTF-16 units, numbers written as
// ECMAScript writes them, and integers of any size.
//
// Invariants:
//
//   - A number's text reads back as the same number (TestNumberRoundTrip).
//   - Compare is a total order over what it accepts, and agrees with exact
//     arithmetic between integers and reals (TestCompareLaws).
//   - Cutting text in UTF-16 units and joining the parts gives the text again,
//     surrogate halves included (FuzzSlice).
//
// Absent reads as NULL everywhere.
package value

// Error is a value that cannot be computed. It never quotes the value (D10).
type Error struct{ Msg string }

func (e *Error) Error() string { return e.Msg }
