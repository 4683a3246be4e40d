// Package config reads the YAML of a sync config: its sections, options and
// SQL texts, each with its exact place, and everything that is wrong with them.
//
// Invariants:
//
//   - Parse reports every problem that it finds, not the first one only
//     (TestDiagnostics).
//   - A byte of a decoded scalar leads back to the byte of the YAML text that
//     it came from, whatever the scalar's style (TestScalarOffsets, FuzzParse).
//   - Aliases are never followed, size and depth are bounded, and no input
//     makes Parse panic (FuzzParse).
package config
