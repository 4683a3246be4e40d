package session

import "github.com/sluicesync/sluice/libs/model"

// Line is one line of the protocol, to be encoded by the transport.
type Line interface{ isLine() }

// Checkpoint is the first line of a stream.
type Checkpoint struct {
	LastOp          model.OpID
	WriteCheckpoint uint64 // 0 = none
	Buckets         []Bucket
	Streams         []Stream
}

// CheckpointDiff is every later checkpoint, against the line before it.
type CheckpointDiff struct {
	LastOp          model.OpID
	WriteCheckpoint uint64 // state replacing: 0 takes it from the client
	Removed         []string
	Updated         []Bucket
}

// Data is a chunk of a bucket's history. The ops themselves are with the shell.
type Data struct {
	Bucket    string
	After     model.OpID
	NextAfter model.OpID
	HasMore   bool
	Count     int
}

// PartialComplete says that all buckets up to a priority are complete.
type PartialComplete struct {
	LastOp   model.OpID
	Priority int
}

// Complete says that everything up to LastOp was sent.
type Complete struct {
	LastOp model.OpID
}

// TokenExpiresIn is the keepalive. The shell makes it: time is no part of a
// session.
type TokenExpiresIn struct {
	Seconds int
}

func (Checkpoint) isLine()      {}
func (CheckpointDiff) isLine()  {}
func (Data) isLine()            {}
func (PartialComplete) isLine() {}
func (Complete) isLine()        {}
func (TokenExpiresIn) isLine()  {}
