package storetest

import (
	"fmt"
	"strings"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// testGone: a range of records is removed as a whole, and nothing beside it; rows
// of the same commit are written after it.
func testGone(t *suite) {
	st := t.deploy()
	table := row(0).Table
	id := func(n int) model.RowID { return row(n).Row } // that of 0 is zero
	all := func() string {
		t.Helper()
		var b strings.Builder
		for _, table := range []model.TableID{{6}, table, {7, 1}, {8}} {
			page, more, err := t.s.Table(t.ctx, st.id, table, model.RowID{}, 100)
			t.check(err)
			if more {
				t.Error("there are more")
			}
			for _, r := range page {
				fmt.Fprintf(&b, "%x:%d=%s ", r.Key.Table[:2], int(r.Key.Row[0])<<8|int(r.Key.Row[1]), r.Record.Source)
			}
		}
		return strings.TrimSpace(b.String())
	}
	var rows []model.EvaluatedRow
	for n := range 6 {
		r := put(n*100, "x", "a")
		r.Source = "s"
		rows = append(rows, r)
	}
	for _, table := range []model.TableID{{6}, {7, 1}, {8}} {
		r := put(200, "x", "a")
		r.Key.Table, r.Source = table, "other"
		rows = append(rows, r)
	}
	st.tx(1, rows...)
	commit := func(gone []ledger.RowRange, rows ...ledger.RowWrite) {
		t.Helper()
		st.resume()
		head := st.ledger.Head()
		c := &ledger.Commit{Stream: st.id, Previous: head.Applied, PreviousOp: head.Persisted, Head: head, Gone: gone, Rows: rows}
		c.Head.Applied.Offset++
		t.check(t.s.Commit(t.ctx, c))
	}
	step := func(want string, gone []ledger.RowRange, rows ...ledger.RowWrite) {
		t.Helper()
		commit(gone, rows...)
		for range 2 {
			if got := all(); got != want {
				t.Errorf("gone %v: %s, want %s", gone, got, want)
			}
			t.reopen()
		}
		st.open()
	}
	before, behind := "0600:200=other ", " 0701:200=other 0800:200=other"
	step(before+"0700:0=s 0700:100=s 0700:400=s 0700:500=s"+behind, []ledger.RowRange{{Table: table, After: id(100), UpTo: id(300)}})
	step(before+"0700:400=s 0700:500=s"+behind, []ledger.RowRange{{Table: table, UpTo: id(100)}})
	again := ledger.RowWrite{Key: row(500), Record: &ledger.Record{Source: "again"}}
	fresh := ledger.RowWrite{Key: row(50), Record: &ledger.Record{Source: "fresh"}}
	gone := []ledger.RowRange{{Table: table, UpTo: id(450)}, {Table: table, After: id(450), UpTo: id(500)}, {Table: model.TableID{8}, UpTo: id(200)}}
	// What the store has read for the commit may be of before the range.
	_, err := t.s.Records(t.ctx, st.id, []model.RowKey{again.Key, fresh.Key, row(400)})
	t.check(err)
	step(before+"0700:50=fresh 0700:500=again 0701:200=other", gone, again, fresh)
	// Many rows as one.
	rows = rows[:0]
	for n := range 300 {
		rows = append(rows, put(1000+n, "x", "a"))
	}
	st.resume()
	st.tx(2, rows...)
	step(before+"0700:50=fresh 0700:500=again 0700:1000= 0700:1299= 0701:200=other", []ledger.RowRange{{Table: table, After: id(1000), UpTo: id(1298)}})
	step(before+"0700:50=fresh 0700:500=again 0701:200=other", []ledger.RowRange{{Table: table, After: id(600), UpTo: id(1298)}, {Table: table, After: id(1298), UpTo: id(5000)}})
	same := ledger.RowWrite{Key: row(500), Record: &ledger.Record{Source: "again"}}
	_, err = t.s.Records(t.ctx, st.id, []model.RowKey{same.Key})
	t.check(err)
	step(before+"0700:500=again 0701:200=other", []ledger.RowRange{{Table: table, UpTo: id(500)}}, same)
}

// testLargeTable: a page of a table whose records are large is smaller.
func testLargeTable(t *suite) {
	st := t.deploy()
	n := 12
	var rows []model.EvaluatedRow
	for i := range n {
		r := put(i, "x", "a")
		r.Source = strings.Repeat("s", 2<<20)
		rows = append(rows, r)
	}
	st.tx(1, rows...)
	found := 0
	for after, more := (model.RowID{}), true; more; {
		var page []ledger.KeyedRecord
		var err error
		page, more, err = t.s.Table(t.ctx, st.id, row(0).Table, after, 100)
		t.check(err)
		if len(page) == 0 || len(page) > 8 && !t.instance.Small {
			t.Fatalf("a page has %d records of 2 MiB", len(page))
		}
		for _, r := range page {
			if r.Key != row(found) || len(r.Record.Source) != 2<<20 {
				t.Fatalf("record %d: %v with %d bytes", found, r.Key, len(r.Record.Source))
			}
			found++
		}
		after = page[len(page)-1].Key.Row
	}
	if found != n {
		t.Errorf("%d records are found, of %d", found, n)
	}
}
