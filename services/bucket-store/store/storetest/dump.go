package storetest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// asked is what dump asks for by name, of the things that a store does not list.
type asked struct {
	tables  []model.TableID
	rows    []model.RowKey
	lookups []string
	users   []string
	heads   []model.Position
	// present leaves out the data of stopped streams, and checkpoints that are
	// over.
	present bool
}

// dump is all that anyone can see in s, as text: two stores with the same dump
// are the same to every caller.
func (t *suite) dump(s store.Store, a asked) string {
	t.Helper()
	var b strings.Builder
	streams, err := s.Streams(t.ctx)
	t.check(err)
	for i := range streams {
		st := &streams[i]
		fmt.Fprintf(&b, "stream %d %s %s %s %+v\n", st.ID, st.Name, st.State, st.Config, st.Head)
		if st.State != model.Terminated && !(a.present && st.State == model.Stopped) {
			t.dumpStream(&b, s, st, a)
		}
	}
	for _, at := range a.heads {
		ids, err := s.Reached(t.ctx, at, a.users)
		t.check(err)
		fmt.Fprintf(&b, "reached %s %v\n", at, ids)
	}
	for w, err := range s.Unreached(t.ctx, "") {
		t.check(err)
		fmt.Fprintf(&b, "unreached %+v\n", w)
	}
	return b.String()
}

func (t *suite) dumpStream(b *strings.Builder, s store.Store, st *model.Stream, a asked) {
	t.Helper()
	head, err := s.Head(t.ctx, st.ID)
	t.check(err)
	if head != st.Head {
		t.Errorf("the head of stream %d is %+v, in the list it is %+v", st.ID, head, st.Head)
	}
	tables, err := s.Tables(t.ctx, st.ID)
	t.check(err)
	fmt.Fprintf(b, " tables %+v\n", tables)
	for _, table := range a.tables {
		rows, more, err := s.Table(t.ctx, st.ID, table, model.RowID{}, 1000)
		t.check(err)
		for _, r := range rows {
			fmt.Fprintf(b, " row %x %+v\n", r.Key.Row, *r.Record)
		}
		fmt.Fprintln(b, " more", more)
	}
	records, err := s.Records(t.ctx, st.ID, a.rows)
	t.check(err)
	for i, r := range records {
		if r != nil {
			fmt.Fprintf(b, " record %x %+v\n", a.rows[i].Row, *r)
		}
	}
	buckets, err := s.Dirtiest(t.ctx, st.ID, store.DirtyQuery{})
	t.check(err)
	dirty, err := s.Dirtiest(t.ctx, st.ID, store.DirtyQuery{MinChanges: 1})
	t.check(err)
	slices.SortFunc(dirty, func(a, b store.DirtyBucket) int { return cmp.Compare(a.Bucket, b.Bucket) })
	fmt.Fprintf(b, " dirty %+v\n", dirty)
	for _, d := range buckets {
		fmt.Fprintf(b, " bucket %+v", d)
		for _, c := range []model.OpID{head.Persisted, head.Checkpoint.Op, head.Checkpoint.Op / 2} {
			states, err := s.Checksums(t.ctx, st.ID, c, []string{d.Bucket})
			if !errors.Is(err, store.ErrInvalidated) {
				t.check(err)
			}
			fmt.Fprintf(b, " %v", states)
		}
		b.WriteString(": ")
		for op, err := range s.Ops(t.ctx, st.ID, d.Bucket, 0, head.Persisted) {
			t.check(err)
			b.WriteString(opText(&op))
		}
		b.WriteString("\n")
	}
	at := []model.OpID{head.Persisted, head.Checkpoint.Op}
	if !a.present {
		at = append(at, head.Checkpoint.Op-min(head.Checkpoint.Op, 3))
	}
	for _, c := range at {
		values, err := s.Lookups(t.ctx, st.ID, c, a.lookups, 1000)
		if !errors.Is(err, store.ErrInvalidated) {
			t.check(err)
		}
		fmt.Fprintf(b, " lookups at %s %q\n", c, values)
	}
	for _, at := range a.heads {
		ids, err := s.CustomReached(t.ctx, st.ID, at, a.users)
		t.check(err)
		fmt.Fprintf(b, " custom %s %v\n", at, ids)
	}
}
