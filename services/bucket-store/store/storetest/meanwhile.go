package storetest

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// testMeanwhile reads while a writer commits and a compactor compacts buckets and
// lookups: what a reader gets at a published checkpoint is all of its
// transactions and nothing later (D1), or it is said to be invalidated.
//
// Transaction n moves row n%5 to bucket n%2, and writes n into it and under a
// lookup. So at its checkpoint each row is in one bucket, and says when it was
// last written.
func testMeanwhile(t *suite) {
	st := t.deploy()
	transactions := 200
	if raced {
		transactions = 100
	}
	type published struct {
		n  int
		op model.OpID
	}
	newest := make(chan published, 1) // holds the newest checkpoint
	write := func(n int) model.OpID {
		bucket := fmt.Sprint("b", n%2)
		r := put(n%5, fmt.Sprint(n), bucket)
		r.Lookups = []model.ParameterEntry{{Lookup: fmt.Sprint("row ", n%5), Values: fmt.Sprint(n)}}
		rows := []model.EvaluatedRow{r, put(9, "often", "b0", "b1"), entry(100, "newest", fmt.Sprint(n))}
		if n%3 == 0 { // in two commits, of which the first is not to be seen
			st.apply(model.Cursor{Position: st.at.Position, Offset: st.at.Offset + 1}, rows[1:]...)
			rows = rows[:1]
		}
		return st.tx(n, rows...)
	}
	for n := 1; n <= 5; n++ {
		write(n)
	}
	newest <- published{5, st.ledger.Head().Checkpoint.Op}
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			valid := 0
			for last := false; !last; {
				select {
				case <-done:
					last = true // one more read, of what nobody changes any more
				default:
				}
				at := <-newest
				newest <- at
				ok, err := st.readAt(at.n, at.op)
				if err != nil {
					t.Error(err)
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
			for _, bucket := range []string{"b0", "b1"} {
				if _, err := t.s.Replace(t.ctx, st.id, st.compaction(bucket, c)); err != nil {
					t.Error(err)
				}
			}
			if _, _, err := t.s.CompactLookups(t.ctx, st.id, c, nil, 0); err != nil {
				t.Error(err)
			}
		}
	})
	for n := 6; n <= transactions; n++ {
		c := write(n)
		<-newest
		newest <- published{n, c}
		if n%10 == 0 {
			compacting <- c
		}
	}
	close(compacting)
	close(done)
	wg.Wait()
	st.wantSums(st.ledger.Head().Checkpoint.Op, "b0", "b1")
}

// readAt reads everything after transaction n of testMeanwhile, at its checkpoint
// c, as a new client does; false: it is invalidated.
func (st *stream) readAt(n int, c model.OpID) (bool, error) {
	buckets := []string{"b0", "b1"}
	states, err := st.s.Checksums(st.ctx, st.id, c, buckets)
	if errors.Is(err, store.ErrInvalidated) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	found := map[string]string{}
	hidden := false // a MOVE or CLEAR whose newer op is not to be seen yet
	for i, bucket := range buckets {
		var sum model.Checksum
		last := model.OpID(0)
		rows := map[string]string{}
		for op, err := range st.s.Ops(st.ctx, st.id, bucket, 0, c) {
			if errors.Is(err, store.ErrInvalidated) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			if op.ID <= last || op.ID > c {
				return false, fmt.Errorf("INV-24: op %s after %s up to %s", op.ID, last, c)
			}
			last = op.ID
			sum += op.Checksum
			switch op.Kind {
			case model.OpPut:
				rows[strings.Clone(op.ObjectID)] = strings.Clone(op.Data)
			case model.OpRemove:
				delete(rows, op.ObjectID)
			default:
				hidden = hidden || op.Target > c
			}
		}
		if sum != states[i].Checksum {
			return false, fmt.Errorf("INV-16: checksum %d of %s at %s, its ops have %d", states[i].Checksum, bucket, c, sum)
		}
		for id, data := range rows {
			if other, twice := found[id]; twice && id != "9" {
				return false, fmt.Errorf("D1: at %s row %s is %s in one bucket and %s in another", c, id, other, data)
			}
			found[id] = data
		}
	}
	if hidden {
		return false, nil
	}
	for id := range 5 {
		if want := fmt.Sprint(n - (n-id)%5); found[fmt.Sprint(id)] != want {
			return false, fmt.Errorf("D1: after transaction %d row %d is %q, want %s", n, id, found[fmt.Sprint(id)], want)
		}
	}
	names := []string{"newest"}
	want := []string{fmt.Sprint(n)}
	for id := range 5 {
		names = append(names, fmt.Sprint("row ", id))
		want = append(want, fmt.Sprint(n-(n-id)%5))
	}
	values, err := st.s.Lookups(st.ctx, st.id, c, names, 100)
	if errors.Is(err, store.ErrInvalidated) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for i := range names {
		if len(values[i]) != 1 || values[i][0] != want[i] {
			return false, fmt.Errorf("D1: after transaction %d lookup %s has %q, want %s", n, names[i], values[i], want[i])
		}
	}
	return true, nil
}
