// Package model has the words of the field as types: what a row, a batch, an
// op, a checkpoint is, wherever in Sluice it travels. Values only: no I/O, no
// clock, nothing but the standard library.
//
// One line leads through it: a ChangeBatch (replicator) becomes an
// EvaluatedBatch (rules-evaluator), whose rows become Ops in buckets
// (bucket-store), which a Checkpoint makes visible to clients.
package model
