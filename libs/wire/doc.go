// Package wire converts between the words of libs/model and what travels: the
// messages of proto/, and three compact block forms inside them.
//
//   - change block: the row changes of a ChangeBatch;
//   - evaluated block: the rows of an EvaluatedBatch;
//   - op block: a run of a bucket's ops, and with it row form, which is also how
//     a source row is stored.
//
// Invariants:
//
//   - Decoding what was encoded gives the same values (TestChangeBatch,
//     TestEvaluatedBatch, TestOps, TestRow and the fuzz targets).
//   - Hostile bytes give an error, never a panic, and never an allocation that
//     is not bounded by a small multiple of the input's length: every count in
//     a block is checked against the bytes that are left before anything is
//     made of it (FuzzDecodeChangeBatch, FuzzEvaluatedRows, FuzzOps, FuzzRow,
//     TestHostileCounts).
//
// Decoded strings share memory with the block that they were decoded from: the
// block must not be written to afterwards, and lives as long as any of them.
//
// Text in proto string fields (names, positions, messages) must be UTF-8; other
// bytes become U+FFFD. Text in blocks is kept as it is.
package wire
