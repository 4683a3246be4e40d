package compact

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicesync/sluice/libs/model"
)

// drawLimits draws limits so small that every step is split.
func drawLimits(t *rapid.T) Limits {
	return Limits{
		Memory: rapid.SampledFrom([]int{1, 300, 700, 1 << 20}).Draw(t, "memory"),
		Moves:  rapid.IntRange(1, 4).Draw(t, "moves"),
		Clear:  rapid.IntRange(1, 5).Draw(t, "clear"),
		Held:   rapid.SampledFrom([]int{-1, 1, 3, 100}).Draw(t, "held"),
	}
}

// grow appends ops as replication does: a row is put, put again, removed.
func grow(t *rapid.T, b bucket, n int) bucket {
	var id model.OpID
	if len(b) > 0 {
		id = b[len(b)-1].ID
	}
	b = slices.Clone(b)
	for range n {
		id += model.OpID(rapid.IntRange(1, 3).Draw(t, "gap"))
		r := rapid.IntRange(0, 5).Draw(t, "row")
		op := model.Op{
			ID: id, Kind: model.OpPut,
			// Two source rows may share type and id: only the subkey differs.
			Key:        model.RowKey{Row: model.RowID{byte(r)}},
			ObjectType: "todos", ObjectID: fmt.Sprint(r / 2),
			Checksum: model.Checksum(rapid.Uint32().Draw(t, "checksum")),
		}
		if rapid.IntRange(0, 2).Draw(t, "kind") == 0 {
			op.Kind = model.OpRemove
		} else {
			op.Data = fmt.Sprintf(`{"v":%d}`, id)
		}
		b = append(b, op)
	}
	return b
}

func head(b bucket) model.OpID {
	if len(b) == 0 {
		return 0
	}
	return b[len(b)-1].ID
}

func states(t *rapid.T, b bucket, upTo model.OpID, l Limits) []bucket {
	s, err := b.compactTo(upTo, l)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSameState: D7 and INV-17, at every step and every checkpoint at or above
// the one from which the compaction started.
func TestSameState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := grow(t, nil, rapid.IntRange(0, 30).Draw(t, "old"))
		start := head(old)
		original := grow(t, old, rapid.IntRange(0, 10).Draw(t, "new"))
		for i, b := range states(t, original, start, drawLimits(t)) {
			for c := start; c <= head(original); c++ {
				want, got := original.after(0, c).reduce(), b.after(0, c).reduce()
				if !got.sameRows(want) || got.checksum() != want.checksum() {
					t.Fatalf("step %d, checkpoint %d: %v, want %v", i, c, got, want)
				}
				if b.checksum(c) != original.checksum(c) {
					t.Fatalf("step %d: checksum at %d is %d, want %d", i, c, b.checksum(c), original.checksum(c))
				}
			}
		}
	})
}

// TestResumeAnywhere: D6 and INV-18. A client that holds any prefix of the
// original, and perhaps some of a half compacted bucket, ends with the same
// rows and a right checksum. Before a checkpoint that MOVEs and CLEARs reach
// beyond, nothing is said of completeness.
func TestResumeAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		original := grow(t, nil, rapid.IntRange(1, 40).Draw(t, "ops"))
		from := rapid.SampledFrom(original).Draw(t, "stopped at").ID
		started := rapid.SampledFrom(original).Draw(t, "compacted from").ID
		steps := states(t, original, started, drawLimits(t))
		half := rapid.SampledFrom(steps).Draw(t, "half way")
		steps = states(t, half, head(half), drawLimits(t))
		end := steps[len(steps)-1]

		c := original.after(0, from).reduce()
		required := model.OpID(0)
		middle := half.after(from, rapid.SampledFrom(original).Draw(t, "read half way").ID)
		c.apply(middle)
		required = max(required, middle.target())
		rest := end.after(c.at, head(original))
		required = max(required, rest.target())
		c.apply(rest)

		want := original.reduce()
		if !c.sameRows(want) || c.checksum() != want.checksum() {
			t.Fatalf("client ends with %v, want %v", c, want)
		}
		if required > head(original) {
			t.Fatalf("target %d beyond the head %d: a complete line would never come", required, head(original))
		}
		// An earlier checkpoint may be completed exactly if no target read so
		// far, and no CLEAR, lies beyond it.
		for _, op := range original {
			at, read := op.ID, half.after(0, op.ID)
			cleared := model.OpID(0)
			if len(half) > 0 && half[0].Kind == model.OpClear {
				cleared = half[0].ID
			}
			if at < cleared || read.target() > at {
				continue
			}
			got, want := read.reduce(), original.after(0, at).reduce()
			if !got.sameRows(want) || got.checksum() != want.checksum() {
				t.Fatalf("checkpoint %d shows %v, want %v", at, got, want)
			}
		}
	})
}

// TestInterrupted: INV-20. A compaction that stops after any step is finished
// by the next one, with the result of one that did not stop.
func TestInterrupted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		original := grow(t, nil, rapid.IntRange(0, 30).Draw(t, "ops"))
		l := drawLimits(t)
		l.Memory = 1 << 20
		undisturbed := states(t, original, head(original), l)
		want := undisturbed[len(undisturbed)-1]
		again := states(t, rapid.SampledFrom(undisturbed).Draw(t, "stopped"), head(original), l)
		got := again[len(again)-1]
		// MOVEs folded one by one or all at once: the ops are the same, except
		// that a lone MOVE after an existing CLEAR is not worth a step.
		if !got.reduce().sameRows(want.reduce()) || len(got) > len(want)+1 {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

// TestTwoAtOnce: INV-20. Two compactors whose steps interleave in any way, and
// which started from different checkpoints, do no harm.
func TestTwoAtOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := grow(t, nil, rapid.IntRange(0, 20).Draw(t, "old"))
		original := grow(t, old, rapid.IntRange(0, 20).Draw(t, "new"))
		b := slices.Clone(original)
		type plan struct {
			moves  [][]Move
			clears []Clear
		}
		var plans [2]plan
		for i, upTo := range []model.OpID{head(old), head(original)} {
			p := New(drawLimits(t))
			for j := len(original) - 1; j >= 0; j-- {
				if original[j].ID <= upTo {
					p.Add(&original[j])
					for m := p.Moves(); m != nil; m = p.Moves() {
						plans[i].moves = append(plans[i].moves, m)
					}
				}
			}
			for m := p.Rest(); m != nil; m = p.Rest() {
				plans[i].moves = append(plans[i].moves, m)
			}
			plans[i].clears = p.Clears()
		}
		for len(plans[0].moves)+len(plans[0].clears)+len(plans[1].moves)+len(plans[1].clears) > 0 {
			p := &plans[rapid.IntRange(0, 1).Draw(t, "turn")]
			switch {
			case len(p.moves) > 0:
				b, p.moves = b.move(p.moves[0]), p.moves[1:]
			case len(p.clears) > 0:
				next, err := b.move(p.clears[0].Moves).clear(p.clears[0].To)
				if err != nil {
					t.Fatal(err)
				}
				b, p.clears = next, p.clears[1:]
			}
			want, got := original.reduce(), b.reduce()
			if !got.sameRows(want) || got.checksum() != want.checksum() {
				t.Fatalf("%v, want %v", got, want)
			}
		}
	})
}

func TestIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		original := grow(t, nil, rapid.IntRange(0, 30).Draw(t, "ops"))
		once := states(t, original, head(original), Limits{})
		compacted := once[len(once)-1]
		if again := states(t, compacted, head(original), Limits{}); len(again) != 1 {
			t.Fatalf("compacting %v again makes %v", compacted, again[1:])
		}
	})
}

// TestMemoryLimit: however many rows a bucket has, a plan keeps no more than
// its limit, and what it did not keep it leaves alone.
func TestMemoryLimit(t *testing.T) {
	const rows, room = 10_000, 1000
	p := New(Limits{Memory: room * (rowSize + 5), Moves: 1 << 30, Held: -1})
	id := model.OpID(3 * rows)
	for range 3 {
		for r := range rows {
			p.Add(&model.Op{ID: id, Kind: model.OpPut, Key: model.RowKey{Row: model.RowID{byte(r), byte(r >> 8)}}, ObjectType: "t", ObjectID: fmt.Sprintf("%05d", r)})
			id--
		}
	}
	if p.memory > p.limits.Memory || len(p.seen) < room-2 || len(p.seen) > room {
		t.Errorf("%d rows in %d bytes, limit %d", len(p.seen), p.memory, p.limits.Memory)
	}
	if moves := p.Rest(); len(moves) != 2*len(p.seen) {
		t.Errorf("%d moves of %d rows", len(moves), len(p.seen))
	}
	if added, untracked := p.Ops(); added != 3*rows || untracked != 3*(rows-uint64(len(p.seen))) {
		t.Errorf("added %d, untracked %d", added, untracked)
	}
}

// TestSteps: MOVEs come in steps of Limits.Moves, and each CLEAR folds at most
// Limits.Clear ops, the CLEAR of the step before it among them.
func TestSteps(t *testing.T) {
	var original bucket
	for i := range 25 {
		original = append(original, model.Op{ID: model.OpID(i + 1), Kind: model.OpPut, ObjectID: "x", Checksum: 1})
	}
	original = append(original, model.Op{ID: 26, Kind: model.OpRemove, ObjectID: "x", Checksum: 1})
	for held, want := range map[int][]int{
		-1:  {26, 26, 26, 26, 19, 10, 1}, // 25 MOVEs in three steps, then 8, 9 and 9 ops folded
		15:  {26, 26, 26, 19, 10, 1},     // 16 MOVEs in two steps, 9 with the CLEARs
		100: {26, 19, 10, 1},             // all of them with the CLEARs
	} {
		all, err := original.compactTo(26, Limits{Moves: 10, Clear: 10, Held: held})
		if err != nil {
			t.Fatal(err)
		}
		var sizes []int
		for _, b := range all {
			sizes = append(sizes, len(b))
		}
		if !slices.Equal(sizes, want) {
			t.Errorf("%d held: sizes %v, want %v", held, sizes, want)
		}
		if last := all[len(all)-1]; !slices.Equal(last, bucket{{ID: 26, Kind: model.OpClear, Checksum: 26, Target: 26}}) {
			t.Errorf("%d held: ends as %v", held, last)
		}
	}
}

// BenchmarkPlan is the bucket: 1,000 rows × 200 updates.
func BenchmarkPlan(b *testing.B) {
	const rows, updates = 1000, 200
	ids := make([]string, rows)
	keys := make([]model.RowKey, rows)
	for r := range rows {
		ids[r] = fmt.Sprintf("0b7e1c7c-7d7a-5d8f-9f4e-%012d", r)
		keys[r].Row = model.UUID5([]byte(ids[r]))
	}
	b.ReportAllocs()
	moves := 0
	for b.Loop() {
		p := New(Limits{})
		id := model.OpID(rows * updates)
		for range updates {
			for r := range rows {
				p.Add(&model.Op{ID: id, Kind: model.OpPut, Key: keys[r], ObjectType: "todos", ObjectID: ids[r]})
				for m := p.Moves(); m != nil; m = p.Moves() {
					moves += len(m)
				}
				id--
			}
		}
		for m := p.Rest(); m != nil; m = p.Rest() {
			moves += len(m)
		}
		for _, c := range p.Clears() {
			moves += len(c.Moves)
		}
	}
	if moves != (updates-1)*rows*b.N {
		b.Fatalf("%d moves in %d runs", moves, b.N)
	}
	b.ReportMetric(float64(rows*updates*b.N)/b.Elapsed().Seconds(), "ops/s")
}
