package model

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// StreamID numbers the replication streams (one effort for one config version)
// of a deployment. Ids increase and are never reused; they are the version
// prefix of bucket ids.
type StreamID int64

// Epoch fences the writers of one replication stream: whoever opens the stream
// gets a higher one, and the ledger drops what carries a lower one (D5).
type Epoch uint64

// Position is a place in the source's log as text whose byte order is the
// source's order; each source has a format (for Postgres two zero-padded
// hexadecimal halves). "" is before everything.
//
// In a stream the source's position stands behind a mark for each time that the
// log which the stream had read was lost and its tables were compared anew with
// what is stored: a later log comes after all of an earlier one. No source's
// positions begin with a mark.
type Position string

const (
	markLog     = '}' // the log had a gap: positions mean what they meant
	markHistory = '~' // the source has another history: they begin anew
)

// Loss is why a stream went over to another log.
type Loss uint8

const (
	NoLoss Loss = iota
	LostLog
	LostHistory
)

// Loss is why the log that p is of was begun.
func (p Position) Loss() Loss {
	mark := p.Mark()
	switch {
	case mark == "":
		return NoLoss
	case mark[len(mark)-1] == markLog:
		return LostLog
	}
	return LostHistory
}

// Mark are the marks that p begins with.
func (p Position) Mark() Position { return p[:len(p)-len(p.Source())] }

// Source is the position as the source knows it.
func (p Position) Source() Position {
	return Position(strings.TrimLeft(string(p), string([]byte{markLog, markHistory})))
}

// Log counts the logs before the one that p is of.
func (p Position) Log() uint32 { return uint32(len(p.Mark())) }

// Histories counts the histories of the source before the one that p is of.
func (p Position) Histories() uint32 {
	return uint32(strings.Count(string(p.Mark()), string(rune(markHistory))))
}

// Next is where the next log begins, before all of its positions.
func (p Position) Next(otherHistory bool) Position {
	if otherHistory {
		return p.Mark() + Position(rune(markHistory))
	}
	return p.Mark() + Position(rune(markLog))
}

// Cursor is a place in the chain of batches: Offset row changes (in the
// initial snapshot: batches) past the end of the source transaction at
// Position. Offset 0 is a transaction end, and only there a checkpoint may be
// made (D1). Logical decoding repeats exactly, so a cursor names the same
// place again after a restart, however the batches were packed.
type Cursor struct {
	Position Position
	Offset   uint64
}

// Compare orders cursors along the log.
func (c Cursor) Compare(d Cursor) int {
	if n := cmp.Compare(c.Position, d.Position); n != 0 {
		return n
	}
	return cmp.Compare(c.Offset, d.Offset)
}

// AtTransactionEnd reports whether everything up to c is whole transactions.
func (c Cursor) AtTransactionEnd() bool { return c.Offset == 0 }

func (c Cursor) String() string { return fmt.Sprintf("%s+%d", c.Position, c.Offset) }

// OpID orders the ops of one replication stream: it only grows and is never
// reused; zero is before the first. On the wire it is a decimal string, for
// JavaScript numbers cannot hold every 64-bit integer.
type OpID uint64

func (id OpID) String() string { return strconv.FormatUint(uint64(id), 10) }

// Micros is a time in microseconds since 1970 UTC; zero is unknown.
type Micros int64
