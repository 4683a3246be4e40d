package pebble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// TestDamage flips a bit of a file, again and again: what is read then is all
// that was written, or store.ErrDamaged.
func TestDamage(t *testing.T) {
	whole := vfs.NewMem()
	const total = 600
	s := open(t, "store", Options{FS: whole, MemTableBytes: 64 << 10})
	l, err := begin(s)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= total; n++ {
		if err := addTransaction(s, l, 1, n); err != nil {
			t.Fatal(err)
		}
		if n == total-40 { // the log has the rest
			if err := s.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := whole.List("store")
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(4, 4))
	newest := "" // log
	for _, name := range files {
		if strings.HasSuffix(name, ".log") {
			newest = max(newest, name)
		}
	}
	outcomes := map[string]int{}
	kinds := map[string]int{}
	for _, name := range files {
		data := readFile(t, whole, "store/"+name)
		kind := name[strings.LastIndexAny(name, ".")+1:]
		if i := strings.IndexByte(name, '-'); i > 0 {
			kind = name[:i]
		}
		if len(data) == 0 {
			continue
		}
		kinds[kind]++
		flips := 3
		switch {
		case kind == "MANIFEST":
			flips = 12
		case name == newest: // an old one, that it is written over, may go on behind its end
			flips = 30
		}
		for range flips {
			at, bit := random.IntN(len(data)), random.IntN(8)
			what := fmt.Sprintf("%s with bit %d of byte %d of %d flipped", name, bit, at, len(data))
			damaged := vfs.NewMem()
			if _, err := vfs.Clone(whole, damaged, "store", "store"); err != nil {
				t.Fatal(err)
			}
			changed := slices.Clone(data)
			changed[at] ^= 1 << bit
			writeFile(t, damaged, "store/"+name, changed)
			outcome := func() string {
				s, err := Open("store", Options{FS: damaged, MemTableBytes: 64 << 10})
				if err != nil {
					if !errors.Is(err, store.ErrDamaged) && kind != "OPTIONS" { // there it is another option
						t.Errorf("%s: open: %v", what, err)
					}
					return "not opened"
				}
				defer s.Close() // fails of the same
				n, err := history(s)
				switch {
				case errors.Is(err, store.ErrDamaged):
					return "not read"
				case err != nil:
					t.Errorf("%s: %v", what, err)
				case n == total:
					return "whole"
				default:
					t.Errorf("%s: only %d of %d transactions are there", what, n, total)
				}
				return "wrong"
			}()
			outcomes[kind+" "+outcome]++
		}
	}
	for _, kind := range []string{"sst", "log", "MANIFEST"} {
		if kinds[kind] == 0 {
			t.Errorf("no file is a %s: %v", kind, files)
		}
		if outcomes[kind+" not opened"]+outcomes[kind+" not read"] == 0 {
			t.Errorf("no damage of a %s was found", kind)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(outcomes)) {
		t.Log(k, outcomes[k])
	}
}

// history reads everything, and returns how many transactions of addTransaction
// it is, or why it is not what they have written.
func history(s *Store) (int, error) {
	ctx := context.Background()
	head, err := s.Head(ctx, 1)
	if err != nil {
		return 0, err
	}
	n := 0
	if p := head.Applied.Position; p != "" {
		if n, err = strconv.Atoi(string(p)); err != nil {
			return 0, err
		}
	}
	names := []string{"all", "b0", "b1", "b2"}
	states, err := s.Checksums(ctx, 1, head.Persisted, names)
	if err != nil {
		return 0, err
	}
	for i, name := range names {
		var sum model.Checksum
		count := uint64(0)
		last := 0
		for op, err := range s.Ops(ctx, 1, name, 0, ^model.OpID(0)) {
			if err != nil {
				return 0, err
			}
			sum += op.Checksum
			count++
			if op.Kind != model.OpPut {
				continue
			}
			var k int
			if _, err := fmt.Sscanf(op.Data, `{"n":%d}`, &k); err != nil {
				return 0, fmt.Errorf("op %s of %s has data %q", op.ID, name, op.Data)
			}
			want, _ := model.PutChecksum("t", "x", op.Data, nil)
			if k <= last || k > n || op.ObjectID != fmt.Sprint(k%10) || op.Checksum != want || name != "all" && name != fmt.Sprint("b", k%3) {
				return 0, fmt.Errorf("op %s of %s is %+v after transaction %d", op.ID, name, op, last)
			}
			if name == "all" && k != last+1 {
				return 0, fmt.Errorf("transaction %d comes after %d", k, last)
			}
			last = k
		}
		if states[i] != (model.BucketState{Checksum: sum, Count: count}) {
			return 0, fmt.Errorf("bucket %s: state %v, ops %d %d", name, states[i], sum, count)
		}
		if name == "all" && last != n {
			return 0, fmt.Errorf("the head is at transaction %d, the ops end at %d", n, last)
		}
	}
	for k := range 10 {
		records, err := s.Records(ctx, 1, []model.RowKey{{Row: model.RowID{byte(k)}}})
		if err != nil {
			return 0, err
		}
		if n >= 10 && (records[0] == nil || len(records[0].Buckets) != 2 || records[0].Buckets[1].ObjectID != fmt.Sprint(k)) {
			return 0, fmt.Errorf("record of row %d: %+v", k, records[0])
		}
	}
	return n, nil
}

func readFile(t *testing.T, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t *testing.T, fs vfs.FS, name string, data []byte) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}
