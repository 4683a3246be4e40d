package storetest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// testMeanwhile reads while a writer commits and a compactor compacts: what a
// reader gets at a published checkpoint is right or said to be invalidated.
func testMeanwhile(t *suite) {
	st := t.deploy()
	st.tx(1, put(1, "x", "a"))
	var wg sync.WaitGroup
	done := make(chan struct{})
	published := make(chan model.OpID, 1) // the newest checkpoint
	published <- st.ledger.Head().Checkpoint.Op
	newest := func() model.OpID {
		c := <-published
		published <- c
		return c
	}
	for range 2 {
		wg.Go(func() {
			valid := 0
			for last := false; !last; {
				select {
				case <-done:
					last = true // one more read, of what nobody changes any more
				default:
				}
				c := newest()
				states, err := t.s.Checksums(t.ctx, st.id, c, []string{"a"})
				if errors.Is(err, store.ErrInvalidated) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				var sum model.Checksum
				before := model.OpID(0)
				ok := true
				for op, err := range t.s.Ops(t.ctx, st.id, "a", 0, c) {
					if errors.Is(err, store.ErrInvalidated) {
						ok = false
						break
					}
					if err != nil || op.ID <= before || op.ID > c {
						t.Errorf("INV-24: op %s after %s up to %s: %v", op.ID, before, c, err)
						return
					}
					before = op.ID
					sum += op.Checksum
				}
				if ok && sum != states[0].Checksum {
					t.Errorf("INV-16: checksum %d at %s, the ops have %d", states[0].Checksum, c, sum)
					return
				}
				if ok {
					valid++
				}
			}
			if valid == 0 {
				t.Error("no read was valid")
			}
		})
	}
	compacting := make(chan model.OpID) // closed by the writer
	wg.Go(func() {
		for c := range compacting {
			if _, err := t.s.Replace(t.ctx, st.id, st.compaction("a", c)); err != nil {
				t.Error(err)
			}
		}
	})
	for n := 2; n < 200; n++ {
		rows := []model.EvaluatedRow{put(n%5, fmt.Sprint("v", n), "a")}
		if n%7 == 0 {
			rows = append(rows, remove(n%3))
		}
		c := st.tx(n, rows...)
		<-published
		published <- c
		if n%10 == 0 {
			compacting <- c
		}
	}
	close(compacting)
	close(done)
	wg.Wait()
	st.wantSums(st.ledger.Head().Checkpoint.Op, "a")
}
