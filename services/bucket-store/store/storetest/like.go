package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store/memory"
)

// testLikeTheModel makes random changes and compactions in the store and in
// the memory fake: every read of either must be the same.
func testLikeTheModel(t *suite) {
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	real := t.deploy()
	fake := (&suite{T: t.T, ctx: t.ctx, s: memory.New()}).deploy()
	bucket := func() string { return fmt.Sprint("b", random.IntN(4)) }
	for n := 1; n <= 300; n++ {
		var rows []model.EvaluatedRow
		for range random.IntN(5) {
			var r model.EvaluatedRow
			switch k := random.IntN(8); random.IntN(10) {
			case 0:
				r = remove(k)
			case 1:
				r = model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: model.TableID{7}}}
			case 2:
				r = put(k, fmt.Sprint("moved ", n), bucket())
				before := row(random.IntN(8)).Row
				r.Before = &before
			default:
				r = put(k, fmt.Sprint("v", n), bucket())
				if other := bucket(); other != r.Puts[0].Bucket {
					r.Puts = append(r.Puts, put(k, fmt.Sprint("v", n), other).Puts...)
				}
				r.Lookups = []model.ParameterEntry{{Lookup: fmt.Sprint("l", random.IntN(3)), Values: fmt.Sprintf("[%d]", random.IntN(5))}}
			}
			rows = append(rows, r)
		}
		end := model.Cursor{Position: position(n)}
		if random.IntN(4) == 0 {
			end = model.Cursor{Position: real.at.Position, Offset: real.at.Offset + 1}
		}
		real.apply(end, rows...)
		fake.apply(end, rows...)
		head := real.ledger.Head()
		if f := fake.ledger.Head(); f != head {
			t.Fatalf("seed %d step %d: head %+v, model %+v", seed, n, head, f)
		}
		if n%20 == 0 {
			compactBoth(real, fake, bucket(), head.Checkpoint.Op)
			_, _, err := real.s.CompactLookups(t.ctx, real.id, head.Checkpoint.Op, nil, 0)
			t.check(err)
			_, _, err = fake.s.CompactLookups(t.ctx, fake.id, head.Checkpoint.Op, nil, 0)
			t.check(err)
		}
		if n == 150 {
			t.reopen()
			real.open()
			fake.open()
		}
		for range 5 {
			c := model.OpID(random.Uint64N(uint64(head.Persisted) + 2))
			if random.IntN(2) == 0 {
				c = head.Checkpoint.Op
			}
			b, after := bucket(), model.OpID(random.Uint64N(uint64(c)+1))
			if got, want := real.ops(b, after, c), fake.ops(b, after, c); got != want {
				t.Fatalf("seed %d step %d: ops of %s in (%s, %s]:\n%s\nmodel\n%s", seed, n, b, after, c, got, want)
			}
			if got, want := real.sums(c, "b0", "b1", "b2", "b3"), fake.sums(c, "b0", "b1", "b2", "b3"); !slices.Equal(got, want) {
				t.Fatalf("seed %d step %d: checksums at %s: %v, model %v", seed, n, c, got, want)
			}
			if got, want := real.lookups(c, "l0", "l1", "l2"), fake.lookups(c, "l0", "l1", "l2"); got != want {
				t.Fatalf("seed %d step %d: lookups at %s: %s, model %s", seed, n, c, got, want)
			}
		}
	}
}

func compactBoth(real, fake *stream, bucket string, c model.OpID) {
	real.Helper()
	r := real.compaction(bucket, c)
	if f := fake.compaction(bucket, c); fmt.Sprint(f) != fmt.Sprint(r) {
		real.Fatalf("compaction of %s would be %v, model %v", bucket, r, f)
	}
	if len(r.Moves) == 0 && r.ClearTo == 0 {
		return
	}
	if a, b := real.replace(r), fake.replace(r); a != b {
		real.Fatalf("compaction of %s removed %d, model %d", bucket, a, b)
	}
}
