package pebble

import (
	"sync"
	"testing"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// TestRemovedLookups: D6. What was removed is never back while, or because, its
// many versions are dropped in several steps.
func TestRemovedLookups(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	l, err := begin(s)
	if err != nil {
		t.Fatal(err)
	}
	const versions = 3 * lookupStep
	was, head := l.Head(), l.Head()
	c := &ledger.Commit{Stream: 1, Previous: was.Applied, PreviousOp: was.Persisted, Published: true, Activate: true}
	for range versions {
		head.Persisted++
		c.Entries = append(c.Entries, ledger.EntryWrite{ID: head.Persisted, Lookup: "l", Values: "[1]"})
	}
	c.Entries[versions-1].Values = ""
	head.Applied.Position, head.SnapshotDone = "1", true
	head.Checkpoint = model.Checkpoint{Op: head.Persisted, Position: "1"}
	c.Head = head
	if err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	reading, compacted := make(chan struct{}), make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for n, done := 0, false; !done; n++ {
			if n == 1 {
				close(reading)
			}
			select {
			case <-compacted:
				done = true // and once more
			default:
			}
			if got, err := s.Lookups(t.Context(), 1, head.Persisted, []string{"l"}, 10); err != nil || len(got[0]) > 0 {
				t.Errorf("a removed entry is back: %q %v", got, err)
				return
			}
		}
	})
	<-reading
	removed, next, err := s.CompactLookups(t.Context(), 1, head.Persisted, nil, 0)
	close(compacted)
	reader.Wait()
	if removed != versions || next != nil || err != nil {
		t.Errorf("%d removed, %x %v", removed, next, err)
	}
}
