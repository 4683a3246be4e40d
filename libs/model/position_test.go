package model

import "testing"

// TestLaterLog: D2 of positions: a position of a later log is after each one of an
// earlier log, and as a place it is where the source says, in its history.
func TestLaterLog(t *testing.T) {
	const low, high = Position("00000000/00000001"), Position("FFFFFFFF/FFFFFFFF")
	last := high
	histories := uint32(0)
	for n, other := range []bool{false, true, true, false} {
		begin := last.Next(other)
		if other {
			histories++
		}
		p := begin + low
		if want := map[bool]Loss{false: LostLog, true: LostHistory}[other]; p.Loss() != want || low.Loss() != NoLoss {
			t.Errorf("%q: loss %d", p, p.Loss())
		}
		if begin <= last || p <= begin {
			t.Errorf("%q, %q, %q are not in order", last, begin, p)
		}
		if p.Source() != low || begin.Source() != "" || p.Mark() != begin || p.Log() != uint32(n+1) || p.Histories() != histories {
			t.Errorf("%q: source %q, mark %q, log %d, history %d", p, p.Source(), p.Mark(), p.Log(), p.Histories())
		}
		s := Stream{Era: 2, Head: StreamHead{Applied: Cursor{Position: begin}}}
		if s.EraNow() != 2+histories || s.Place(p) != PlaceIn(s.EraNow(), low) {
			t.Errorf("%q: era %d, place %q", p, s.EraNow(), s.Place(p))
		}
		last = begin + high
	}
	// Within a history places mean the same whatever the stream.
	if a, b := PlaceIn(0, low.Next(false)+high), PlaceIn(0, high); a != b {
		t.Errorf("places %q and %q", a, b)
	}
}
