package mongodb

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/mongotest"
	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/storetest"
)

func TestShared(t *testing.T) {
	server := mongotest.Start(t)
	n := 0
	storetest.RunShared(t, func(t *testing.T) func() store.Shared {
		n++
		c := server.Config(fmt.Sprint("shared", n))
		return func() store.Shared {
			s, err := Open(t.Context(), c, Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return s
		}
	})
}

// uri names a real server for TestServer.
const uri = "SLUICE_TEST_MONGODB_URI"

// TestServer runs the contract on a real server, in databases that it makes and
// drops.
func TestServer(t *testing.T) {
	address := os.Getenv(uri)
	if address == "" {
		t.Skipf("NOT RUN: storage on MongoDB was tested against a fake only. %s=mongodb://... names a replica set to run the same against", uri)
	}
	n := 0
	database := func(t *testing.T) *config.MongoDB {
		n++
		c := &config.MongoDB{URI: address, Database: fmt.Sprintf("sluice_test_%d_%d", os.Getpid(), n)}
		t.Cleanup(func() {
			if err := Migrate(t.Context(), c, Options{}, true, true); err != nil {
				t.Logf("drop %s: %v", c.Database, err)
			}
		})
		return c
	}
	t.Run("Store", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Instance {
			c := database(t)
			s := open(t, c, Options{})
			t.Cleanup(func() { s.Close() })
			return storetest.Instance{Store: s, Reopen: func() store.Store {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				s = open(t, c, Options{})
				return s
			}}
		})
	})
	t.Run("Shared", func(t *testing.T) {
		storetest.RunShared(t, func(t *testing.T) func() store.Shared {
			c := database(t)
			return func() store.Shared {
				s, err := Open(t.Context(), c, Options{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Close() })
				return s
			}
		})
	})
}

// deploy makes a stream with a session.
func deploy(t testing.TB, s store.Store) (model.StreamID, model.StreamHead) {
	t.Helper()
	made, err := s.Change(t.Context(), func([]model.Stream) store.Change { return store.Change{New: &model.Stream{State: model.Active}} })
	if err != nil {
		t.Fatal(err)
	}
	head, err := s.OpenSession(t.Context(), made.ID)
	if err != nil {
		t.Fatal(err)
	}
	return made.ID, head
}

// next is a commit on head of one PUT of row n in bucket "b", checksum 1, with a
// version of a lookup and a custom write checkpoint.
func next(id model.StreamID, head model.StreamHead, n int) *ledger.Commit {
	op := head.Persisted + 1
	c := &ledger.Commit{Stream: id, Previous: head.Applied, PreviousOp: head.Persisted, Head: head, Published: true,
		Buckets:     []ledger.BucketChange{{Bucket: "b", Checksum: 1, Count: 1, First: op, Last: op}},
		Ops:         []ledger.BucketOp{{Op: model.Op{ID: op, Kind: model.OpPut, Checksum: 1, Key: key(n), ObjectType: "t", ObjectID: strconv.Itoa(n), Data: "{}"}}},
		Rows:        []ledger.RowWrite{{Key: key(n), Record: &ledger.Record{Buckets: []ledger.Membership{{Bucket: "b", ObjectType: "t", ObjectID: strconv.Itoa(n)}}, Source: op.String()}}, {Key: key(n + 1)}},
		Entries:     []ledger.EntryWrite{{ID: op, Key: key(1), Lookup: "l", Values: op.String()}},
		Progress:    []model.TableProgress{{Table: model.SourceTable{ID: model.TableID{1}}, Rows: uint64(op)}},
		Checkpoints: []model.CustomCheckpoint{{UserKey: "u", ID: uint64(op)}},
	}
	c.Head.Applied = model.Cursor{Position: model.Position(fmt.Sprintf("%08d", op))}
	c.CheckpointsAt = c.Head.Applied.Position
	c.Head.Persisted = op
	c.Head.Checkpoint = model.Checkpoint{Op: op, Position: c.Head.Applied.Position}
	return c
}

func key(n int) model.RowKey {
	return model.RowKey{Table: model.TableID{1}, Row: model.RowID{byte(n >> 8), byte(n)}}
}

// intact holds that everything is as n commits by next have left it, of which the
// last was of a row (D2, D3, D7).
func intact(t *testing.T, s store.Store, id model.StreamID, n model.OpID, rows ...int) {
	t.Helper()
	ctx := t.Context()
	last := model.OpID(0)
	for op, err := range s.Ops(ctx, id, "b", 0, n+10) {
		if err != nil || op.ID != last+1 {
			t.Fatalf("op %s after %s: %v", op.ID, last, err)
		}
		last = op.ID
	}
	sums, err := s.Checksums(ctx, id, n, []string{"b"})
	if err != nil || last != n || sums[0] != (model.BucketState{Checksum: model.Checksum(n), Count: uint64(n)}) {
		t.Errorf("%s ops, checksums %+v, want %s: %v", last, sums, n, err)
	}
	if n == 0 {
		return
	}
	if values, err := s.Lookups(ctx, id, n+10, []string{"l"}, 10); err != nil || len(values[0]) != 1 || values[0][0] != n.String() {
		t.Errorf("lookups %q, want %s: %v", values, n, err)
	}
	if ids, err := s.CustomReached(ctx, id, "~", []string{"u"}); err != nil || ids[0] != uint64(n) {
		t.Errorf("custom write checkpoint %v, want %s: %v", ids, n, err)
	}
	if tables, err := s.Tables(ctx, id); err != nil || len(tables) != 1 || tables[0].Rows != uint64(n) {
		t.Errorf("progress %+v, want %s: %v", tables, n, err)
	}
	found, _, err := s.Table(ctx, id, model.TableID{1}, model.RowID{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	var have []int
	for _, r := range found {
		have = append(have, int(r.Key.Row[1]))
	}
	if !slices.Equal(have, rows) {
		t.Errorf("records of rows %v, want %v", have, rows)
	}
}

// TestCutAnywhere makes commits, cuts the connection at each command of one, before
// it is done or after, and goes on in this process or in another one.
func TestCutAnywhere(t *testing.T) {
	if testing.Short() {
		t.Skip("a broken connection is looked at again only after half a second")
	}
	for _, x := range []struct {
		cut     mongotest.Cut
		another bool
	}{{mongotest.Before, false}, {mongotest.After, true}, {mongotest.Refused, true}, {mongotest.Denied, false}} {
		t.Run(fmt.Sprint(x.cut, x.another), func(t *testing.T) {
			t.Parallel() // a connection that is cut is made again only after half a second
			server := mongotest.Start(t)
			s := open(t, server.Config("cut"), Options{abortedMax: 3})
			defer func() { s.Close() }()
			id, head := deploy(t, s)
			// Puts one of rows 0 and 1 and removes both as a range before, and puts one
			// of rows 2 and 3 and removes the other.
			commit := func(head model.StreamHead, row int) *ledger.Commit {
				c := next(id, head, row)
				c.Rows = append(c.Rows[:1], ledger.RowWrite{Key: key(row + 2), Record: c.Rows[0].Record}, ledger.RowWrite{Key: key(3 - row)})
				c.Gone = []ledger.RowRange{{Table: key(0).Table, UpTo: key(1).Row}}
				return c
			}
			c := commit(head, 0)
			if err := s.Commit(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			head = c.Head
			row := 0
			for at := 0; ; at++ {
				row = 1 - row
				c := commit(head, row)
				var seen atomic.Int32
				server.Intercept(func(mongotest.Command) mongotest.Cut {
					if int(seen.Add(1)) == at+1 {
						return x.cut
					}
					return mongotest.Done
				})
				err := s.Commit(t.Context(), c)
				reached := int(seen.Load()) > at
				server.Intercept(nil)
				if x.another {
					former := s
					next, err := Open(t.Context(), server.Config("cut"), Options{abortedMax: 3})
					if err != nil {
						t.Fatal(err)
					}
					s = takeOver(t, next)
					former.Store.Close()
				}
				found, herr := s.Head(t.Context(), id)
				if herr != nil {
					t.Fatal(herr)
				}
				switch {
				case found.Persisted == c.Head.Persisted && found.Applied == c.Head.Applied:
					head = found
					intact(t, s, id, head.Persisted, row, row+2)
				case err == nil || found.Persisted != head.Persisted || found.Applied != head.Applied:
					t.Fatalf("cut at %d: %v, head %+v", at, err, found)
				default:
					intact(t, s, id, head.Persisted, 1-row, 3-row)
					if err := s.Commit(t.Context(), c); err != nil {
						t.Fatalf("cut at %d: the same commit again: %v", at, err)
					}
					head = c.Head
					intact(t, s, id, head.Persisted, row, row+2)
				}
				if !reached {
					if at < 10 {
						t.Errorf("a commit has %d commands", at)
					}
					return
				}
			}
		})
	}
}

// TestStalled: a former owner that is stalled within a commit, at any command, and
// goes on when the new one has committed, does no harm (D5).
func TestStalled(t *testing.T) {
	server := mongotest.Start(t)
	for at := range 12 {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			c := server.Config(fmt.Sprint("stalled", at))
			first := open(t, c, Options{})
			defer func() { first.Close() }()
			id, head := deploy(t, first)
			one := next(id, head, 0)
			one.Rows = append(one.Rows, ledger.RowWrite{Key: key(7), Record: one.Rows[0].Record})
			if err := first.Commit(t.Context(), one); err != nil {
				t.Fatal(err)
			}
			former, err := Open(t.Context(), c, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer former.Close()
			if err := first.owner.Release(); err != nil {
				t.Fatal(err)
			}
			if _, err := former.Own(t.Context(), "", func(error) {}); err != nil {
				t.Fatal(err)
			}
			late := next(id, one.Head, 0)
			late.Rows[0].Record.Source = "late"
			late.Gone = []ledger.RowRange{{Table: key(7).Table, After: key(6).Row, UpTo: key(8).Row}}
			done, stalled, held := make(chan error, 1), make(chan struct{}), make(chan struct{})
			goOn := sync.OnceFunc(func() { close(held) })
			defer goOn()
			var seen atomic.Int32
			server.Intercept(func(mongotest.Command) mongotest.Cut {
				if int(seen.Add(1)) == at+1 {
					close(stalled)
					<-held
				}
				return mongotest.Done
			})
			go func() { done <- former.Commit(t.Context(), late) }()
			select {
			case <-stalled:
			case err := <-done:
				t.Fatalf("the commit has less commands: %v", err)
			}
			second := first.Store
			takeOver(t, second)
			two := next(id, one.Head, 0)
			if err := second.Commit(t.Context(), two); err != nil {
				t.Fatal(err)
			}
			goOn()
			if err := <-done; !errors.Is(err, store.ErrNotOwner) {
				t.Errorf("D5: a commit of a former owner: %v", err)
			}
			intact(t, second, id, two.Head.Persisted, 0, 7)
			three := next(id, two.Head, 0)
			if err := second.Commit(t.Context(), three); err != nil {
				t.Fatal(err)
			}
			intact(t, second, id, three.Head.Persisted, 0, 7)
			records, err := second.Records(t.Context(), id, []model.RowKey{key(0)})
			if err != nil || records[0].Source != three.Head.Persisted.String() {
				t.Errorf("record %+v %v", records[0], err)
			}
		})
	}
}

// takeOver makes s the owner without the wait for the former one.
func takeOver(t *testing.T, s *Store) *opened {
	t.Helper()
	if _, err := s.states().UpdateOne(t.Context(), bson.D{{Key: "_id", Value: stateName}}, bson.D{{Key: "$set", Value: bson.D{{Key: "owner.holder", Value: ""}}}, {Key: "$inc", Value: bson.D{{Key: "owner.beat", Value: 1}}}}); err != nil {
		t.Fatal(err)
	}
	owner, err := s.Own(t.Context(), "", func(err error) { t.Log(err) })
	if err != nil {
		t.Fatal(err)
	}
	return &opened{s, owner}
}

// TestCommands: a commit of a thousand rows in one bucket has about as many commands
// as one of a single row, and its ops are in four chunks.
func TestCommands(t *testing.T) {
	server := mongotest.Start(t)
	s := open(t, server.Config("commands"), Options{})
	defer s.Close()
	id, head := deploy(t, s)
	commands := func(rows int) (n int32) {
		t.Helper()
		c := next(id, head, 0)
		first := c.Ops[0].Op.ID
		c.Rows = c.Rows[:1]
		for i := 1; i < rows; i++ {
			more := next(id, head, i)
			op := more.Ops[0]
			op.Op.ID = first + model.OpID(i)
			c.Ops, c.Rows = append(c.Ops, op), append(c.Rows, more.Rows[0])
		}
		last := first + model.OpID(rows-1)
		c.Buckets[0].Checksum, c.Buckets[0].Count, c.Buckets[0].Last = model.Checksum(rows), uint64(rows), last
		c.Head.Persisted, c.Head.Checkpoint.Op = last, last
		var seen atomic.Int32
		server.Intercept(func(mongotest.Command) mongotest.Cut {
			seen.Add(1)
			return mongotest.Done
		})
		err := s.Commit(t.Context(), c)
		server.Intercept(nil)
		if err != nil {
			t.Fatal(err)
		}
		head = c.Head
		return seen.Load()
	}
	commands(1) // the first has indexes to make
	one, many := commands(1), commands(1000)
	if many > one+5 {
		t.Errorf("%d commands commit one row, %d a thousand", one, many)
	}
	if n := chunks(t, s, id); n != 2+4 {
		t.Errorf("%d chunks of ops", n)
	}
}

// chunks is how many there are.
func chunks(t *testing.T, s *opened, id model.StreamID) int {
	t.Helper()
	var all []chunk
	cursor, err := s.of(id, opsName).Find(t.Context(), bson.D{})
	if err == nil {
		err = cursor.All(t.Context(), &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestMerge: what small commits leave is made few chunks, and reads stay as they
// were; what a merge that was cut short left is passed over, and removed.
func TestMerge(t *testing.T) {
	server := mongotest.Start(t)
	s := open(t, server.Config("merge"), Options{})
	defer s.Close()
	id, head := deploy(t, s)
	commit := func(n int) {
		t.Helper()
		for range n {
			c := next(id, head, 0)
			if err := s.Commit(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			head = c.Head
		}
	}
	finish := func() {
		t.Helper()
		if _, err := s.Replace(t.Context(), id, store.Replacement{Bucket: "b", Checkpoint: head.Checkpoint.Op, Finished: true}); err != nil {
			t.Fatal(err)
		}
	}
	commit(20)
	finish()
	if n := chunks(t, s, id); n != 1 {
		t.Errorf("%d chunks of 20 ops", n)
	}
	intact(t, s, id, head.Persisted, 0)
	commit(20)
	for _, name := range []string{"insert", "delete"} { // as a crash just after it
		server.Intercept(func(c mongotest.Command) mongotest.Cut {
			if c.Name == name && strings.HasPrefix(c.Collection, prefix+opsName) {
				return mongotest.Denied
			}
			return mongotest.Done
		})
		if name == "delete" {
			server.Intercept(func(c mongotest.Command) mongotest.Cut {
				if c.Name == name && strings.HasPrefix(c.Collection, prefix+opsName) {
					return mongotest.Refused
				}
				return mongotest.Done
			})
		}
		finish()
		server.Intercept(nil)
		if n := chunks(t, s, id); n != 22 {
			t.Errorf("%d chunks after a merge that failed at %s", n, name)
		}
		intact(t, s, id, head.Persisted, 0)
		var back []model.OpID
		for op, err := range s.Scan(t.Context(), id, "b", 0, head.Persisted, false) {
			if err != nil {
				t.Fatal(err)
			}
			back = append(back, op.ID)
		}
		if slices.Reverse(back); len(back) != 40 || !slices.IsSorted(back) || len(slices.Compact(back)) != 40 {
			t.Errorf("scanned backwards: %v", back)
		}
	}
	finish()
	if n := chunks(t, s, id); n != 1 {
		t.Errorf("%d chunks of 40 ops", n)
	}
	intact(t, s, id, head.Persisted, 0)
}

// TestPages: a CLEAR between two pages of a read is no matter if it is of what
// was read, and an error if it is of what was not.
func TestPages(t *testing.T) {
	server := mongotest.Start(t)
	s := open(t, server.Config("pages"), Options{chunkOps: 1, pageChunks: 4, pageOps: 4})
	defer s.Close()
	id, head := deploy(t, s)
	for range 12 {
		c := next(id, head, 1)
		if err := s.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		head = c.Head
	}
	for _, x := range []struct {
		clear model.OpID
		last  model.OpID
		want  error
	}{{3, 12, nil}, {8, 6, errCompacted}} {
		last, err := model.OpID(0), error(nil)
		for op, fault := range s.Ops(t.Context(), id, "b", 0, 12) {
			if err = fault; err != nil {
				break
			}
			if last == 0 { // the first page is read
				r := store.Replacement{Bucket: "b", Checkpoint: 12, ClearTo: x.clear}
				for m := op.ID + 1; m <= x.clear; m++ {
					r.Moves = append(r.Moves, store.Move{ID: m, Target: 12})
				}
				if op.Kind == model.OpPut {
					r.Moves = append(r.Moves, store.Move{ID: op.ID, Target: 12})
				}
				if _, err := s.Replace(t.Context(), id, r); err != nil {
					t.Fatal(err)
				}
			}
			last = op.ID
		}
		if x.want != nil && (last >= x.clear || !errors.Is(err, x.want)) || x.want == nil && (last != x.last || err != nil) {
			t.Errorf("clear to %s: read up to %s, %v", x.clear, last, err)
		}
	}
}

// TestMigrate: collections are made by whom they may be, and dropped if they have
// no streams.
func TestMigrate(t *testing.T) {
	server := mongotest.Start(t)
	c := server.Config("migrate")
	if _, err := Open(t.Context(), c, Options{NoMigration: true}); err == nil || !strings.Contains(err.Error(), "sluice migrate up") {
		t.Errorf("an empty database is taken: %v", err)
	}
	for range 2 {
		if err := Migrate(t.Context(), c, Options{}, false, false); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, c, Options{NoMigration: true})
	id, head := deploy(t, s)
	if err := s.Commit(t.Context(), next(id, head, 1)); err != nil {
		t.Fatal(err)
	}
	if err := Migrate(t.Context(), c, Options{}, true, false); err == nil || !strings.Contains(err.Error(), "--drop-data") {
		t.Errorf("data is dropped: %v", err)
	}
	if err := Migrate(t.Context(), c, Options{}, true, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), next(id, head, 1)); err == nil {
		t.Error("a commit to what is dropped")
	}
	if names, err := s.db.ListCollectionNames(t.Context(), bson.D{}); err != nil || len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "ops") }) {
		t.Errorf("left are %v %v", names, err)
	}
	s.Store.Close()
	if err := Migrate(t.Context(), c, Options{}, true, false); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestUnreachable: a server that is not there is said to be so, without secrets.
func TestUnreachable(t *testing.T) {
	server := mongotest.Start(t)
	c := server.Config("d")
	server.Stop()
	c.URI = strings.Replace(c.URI, "mongodb://", "mongodb://user:secret@", 1)
	c.URI = strings.Replace(c.URI, "5000", "100", 1)
	begin := time.Now()
	_, err := Open(t.Context(), c, Options{})
	if err == nil || strings.Contains(err.Error(), "secret") || time.Since(begin) > 10*time.Second {
		t.Errorf("%v after %s", err, time.Since(begin))
	}
}

// TestDirtyYet: a bucket whose compaction failed is found by need as before, and
// one that is compacted is not even looked at.
func TestDirtyYet(t *testing.T) {
	server := mongotest.Start(t)
	s := open(t, server.Config("dirty"), Options{})
	defer s.Close()
	id, head := deploy(t, s)
	c := next(id, head, 0)
	if err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	server.Intercept(func(c mongotest.Command) mongotest.Cut {
		if c.Name == "findAndModify" {
			return mongotest.Refused
		}
		return mongotest.Done
	})
	r := store.Replacement{Bucket: "b", Checkpoint: c.Head.Checkpoint.Op, Finished: true}
	if _, err := s.Replace(t.Context(), id, r); err == nil {
		t.Error("a step is decided by a command that was refused")
	}
	server.Intercept(nil)
	for _, want := range []int{1, 0} {
		dirty, err := s.Dirtiest(t.Context(), id, store.DirtyQuery{MinChanges: 1})
		if err != nil || len(dirty) != want {
			t.Errorf("dirty: %+v %v, want %d", dirty, err, want)
		}
		n, err := s.of(id, bucketsName).Find(t.Context(), bson.D{{Key: dirtField, Value: bson.D{{Key: "$gte", Value: 1}}}})
		if err != nil {
			t.Fatal(err)
		}
		var found []bucket
		if err := n.All(t.Context(), &found); err != nil || len(found) != want {
			t.Errorf("%d documents are dirty, want %d: %v", len(found), want, err)
		}
		if _, err := s.Replace(t.Context(), id, r); err != nil {
			t.Fatal(err)
		}
	}
}
