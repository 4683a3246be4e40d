package fanout

import (
	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/line"
)

// Lines is a run of encoded lines on the way to one client. Chunks in it are
// shared: nobody may change their bytes.
type Lines struct {
	Plain []byte // the lines that are not chunks, one after another
	Parts []Part

	completed int // lines that complete a checkpoint
}

// Part is one line: a chunk, or the bytes of Plain from the end of the last
// plain part to End.
type Part struct {
	End   int
	Chunk *chunk.Chunk
}

// Add appends a line.
func (l *Lines) Add(f line.Form, x session.Line) {
	l.Plain = line.Append(l.Plain, f, x)
	l.Parts = append(l.Parts, Part{End: len(l.Plain)})
}

// AddChunk appends a chunk's line.
func (l *Lines) AddChunk(c *chunk.Chunk) {
	l.Parts = append(l.Parts, Part{Chunk: c})
}

// Len is the number of bytes to send.
func (l *Lines) Len() int {
	n := len(l.Plain)
	for _, p := range l.Parts {
		if p.Chunk != nil {
			n += len(p.Chunk.Bytes)
		}
	}
	return n
}

// Empty reports whether there is no line.
func (l *Lines) Empty() bool { return len(l.Parts) == 0 }

// Reset empties l.
func (l *Lines) Reset() {
	clear(l.Parts)
	l.Plain, l.Parts, l.completed = l.Plain[:0], l.Parts[:0], 0
}
