package model

import (
	"cmp"
	"fmt"
	"strconv"
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
type Position string

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
