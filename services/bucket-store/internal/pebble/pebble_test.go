package pebble

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// childDir tells this test binary to be the writer that TestKilled kills.
const childDir = "SLUICE_TEST_WRITE_UNTIL_KILLED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		writeUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// addTransaction commits transaction n: row n%10 moves to bucket n%3, and all
// rows are in bucket "all".
func addTransaction(s *Store, l *ledger.Ledger, id model.StreamID, n int) error {
	head := l.Head()
	data := fmt.Sprintf(`{"n":%d}`, n)
	sum, _ := model.PutChecksum("t", "x", data, nil)
	row := model.EvaluatedRow{Kind: model.RowPut, Key: model.RowKey{Row: model.RowID{byte(n % 10)}}}
	for _, b := range []string{"all", fmt.Sprint("b", n%3)} {
		row.Puts = append(row.Puts, model.Put{Bucket: b, ObjectType: "t", ObjectID: fmt.Sprint(n % 10), Data: data, Checksum: sum})
	}
	batch := &model.EvaluatedBatch{Stream: id, Epoch: head.Epoch, Previous: head.Applied, End: model.Cursor{Position: model.Position(fmt.Sprintf("%08d", n))}, Rows: []model.EvaluatedRow{row}}
	batch.Meta.SnapshotDone = true
	actions := l.Step(ledger.Arrived{Batch: batch})
	records, err := s.Records(context.Background(), id, actions[0].(ledger.Load).Keys)
	if err != nil {
		return err
	}
	actions = l.Step(ledger.Loaded{Records: records})
	if err := s.Commit(context.Background(), actions[0].(*ledger.Commit)); err != nil {
		return err
	}
	l.Step(ledger.Committed{})
	return nil
}

// begin makes a stream, or goes on with stream 1, under a new epoch.
func begin(s *Store) (*ledger.Ledger, error) {
	ctx := context.Background()
	streams, err := s.Streams(ctx)
	if err != nil {
		return nil, err
	}
	if len(streams) == 0 {
		if _, err := s.Change(ctx, func([]model.Stream) store.Change { return store.Change{New: &model.Stream{State: model.Processing}} }); err != nil {
			return nil, err
		}
	}
	if _, err := s.OpenSession(ctx, 1); err != nil {
		return nil, err
	}
	if streams, err = s.Streams(ctx); err != nil {
		return nil, err
	}
	return ledger.New(&streams[0], ledger.Options{}), nil
}

// applied is the number of the last transaction in the store.
func applied(t testing.TB, s *Store) int {
	t.Helper()
	head, err := s.Head(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if head.Applied.Position == "" {
		return 0
	}
	n, err := strconv.Atoi(string(head.Applied.Position))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// consistent holds D1, D3 and D7 after transactions 1 to n, and that nothing else
// is there.
func consistent(t testing.TB, s *Store, n int) {
	t.Helper()
	visible(t, s, n, ^model.OpID(0))
}

// visible is consistent for what is read up to an op.
func visible(t testing.TB, s *Store, n int, upTo model.OpID) {
	t.Helper()
	ctx := context.Background()
	head, err := s.Head(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if head.Checkpoint.Op != head.Persisted {
		t.Errorf("D1: checkpoint %s, persisted %s", head.Checkpoint.Op, head.Persisted)
	}
	names := []string{"all", "b0", "b1", "b2"}
	states, err := s.Checksums(ctx, 1, head.Checkpoint.Op, names)
	if err != nil {
		t.Fatal(err)
	}
	last := model.OpID(0)
	for i, name := range names {
		var sum model.Checksum
		count := uint64(0)
		rows := map[string]string{}
		for op, err := range s.Ops(ctx, 1, name, 0, upTo) {
			if err != nil {
				t.Fatal(err)
			}
			sum += op.Checksum
			count++
			last = max(last, op.ID)
			if op.Kind == model.OpPut {
				rows[strings.Clone(op.ObjectID)] = strings.Clone(op.Data)
			} else {
				delete(rows, op.ObjectID)
			}
		}
		if states[i] != (model.BucketState{Checksum: sum, Count: count}) {
			t.Errorf("D7: bucket %s: state %v, ops %d %d", name, states[i], sum, count)
		}
		want := map[string]string{}
		for k := max(1, n-9); k <= n; k++ {
			if name == "all" || name == fmt.Sprint("b", k%3) {
				want[fmt.Sprint(k%10)] = fmt.Sprintf(`{"n":%d}`, k)
			}
		}
		if fmt.Sprint(rows) != fmt.Sprint(want) {
			t.Errorf("D3: after %d transactions bucket %s has %v, want %v", n, name, rows, want)
		}
	}
	if last != head.Persisted {
		t.Errorf("D2: last op %s, persisted %s", last, head.Persisted)
	}
}

// writeUntilKilled commits transactions and prints the number of each one that
// is acknowledged.
func writeUntilKilled(dir string) {
	s, err := Open(dir, Options{MemTableBytes: 256 << 10})
	if err == nil {
		var l *ledger.Ledger
		if l, err = begin(s); err == nil {
			n := 0
			if p := l.Head().Applied.Position; p != "" {
				n, err = strconv.Atoi(string(p))
			}
			for n++; err == nil; n++ {
				if err = addTransaction(s, l, 1, n); err == nil {
					fmt.Println(n)
				}
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKilled kills a writing process, again and again: every acknowledged
// transaction is there, whole, and none is there in part (D3, INV-8).
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(1, 1))
	total := 0
	for round := range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := 0
		lines := bufio.NewScanner(out)
		for until := 1 + random.IntN(200); until > 0 && lines.Scan(); until-- {
			if acknowledged, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
			t.Errorf("opened while another process writes: %v", err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			if acknowledged, err = strconv.Atoi(lines.Text()); err != nil {
				break // cut in the middle
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the writer ended by itself")
		}
		s := open(t, dir, Options{})
		n := applied(t, s)
		if n < acknowledged || n > acknowledged+1 {
			t.Errorf("round %d: %d transactions are there, %d were acknowledged: %s", round, n, acknowledged, stderr.String())
		}
		consistent(t, s, n)
		total = n
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d transactions", total)
}

// TestUnsyncedLoss cuts the power: what was not synced is lost, in part. All
// that was acknowledged is there (D3, INV-5).
func TestUnsyncedLoss(t *testing.T) {
	fs := vfs.NewCrashableMem()
	random := rand.New(rand.NewPCG(2, 2))
	acknowledged := 0
	for round := range 8 {
		s := open(t, "store", Options{FS: fs, MemTableBytes: 64 << 10})
		if n := applied0(s); n < acknowledged {
			t.Fatalf("round %d: %d transactions are there, %d were acknowledged", round, n, acknowledged)
		} else if n > 0 {
			consistent(t, s, n)
		}
		l, err := begin(s)
		if err != nil {
			t.Fatal(err)
		}
		n := applied(t, s)
		for range 1 + random.IntN(300) {
			n++
			if err := addTransaction(s, l, 1, n); err != nil {
				t.Fatal(err)
			}
			if random.IntN(20) == 0 {
				c := l.Head().Checkpoint.Op
				if _, err := s.Replace(t.Context(), 1, store.Replacement{Bucket: "all", Checkpoint: c, Finished: true}); err != nil {
					t.Fatal(err)
				}
			}
		}
		acknowledged = n
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(100), RNG: random})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		fs = crashed
	}
	if acknowledged < 100 {
		t.Fatalf("only %d transactions", acknowledged)
	}
}

// applied0 is applied, 0 if there is no stream yet.
func applied0(s *Store) int {
	head, err := s.Head(context.Background(), 1)
	if err != nil || head.Applied.Position == "" {
		return 0
	}
	n, err := strconv.Atoi(string(head.Applied.Position))
	if err != nil {
		return -1
	}
	return n
}

// TestKeyOrder: keys sort as the names in them do, whatever their bytes.
func TestKeyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 3))
	var names []string
	for range 2000 {
		b := make([]byte, random.IntN(6))
		for i := range b {
			b[i] = [...]byte{0, 1, 2, 'a', 0xfe, 0xff}[random.IntN(6)]
		}
		names = append(names, string(b))
	}
	slices.Sort(names)
	for i := 1; i < len(names); i++ {
		a, b := names[i-1], names[i]
		ka := appendLookupKey(nil, 1, a, model.RowKey{Row: model.RowID{0xff}}, 1)
		kb := appendLookupKey(nil, 1, b, model.RowKey{}, 2)
		if a != b && bytes.Compare(ka, kb) >= 0 {
			t.Fatalf("lookup %x sorts before %x, its key after", a, b)
		}
		if a != b && bytes.HasPrefix(ka, appendLookupPrefix(nil, 1, b)) {
			t.Fatalf("the key of lookup %x begins like those of %x", a, b)
		}
		if bytes.Compare(appendBucketKey(nil, 1, a), appendBucketKey(nil, 1, b)) > 0 {
			t.Fatalf("bucket %x sorts before %x, its key after", a, b)
		}
	}
	for _, pair := range [][2][]byte{
		{opKey(1, 1, 255), opKey(1, 1, 256)}, {opKey(1, 1, ^model.OpID(0)), opKey(1, 2, 0)}, {opKey(1, ^uint64(0), 5), opKey(2, 0, 0)},
		{appendLookupKey(nil, 1, "l", model.RowKey{}, 2), appendLookupKey(nil, 1, "l", model.RowKey{}, 1)},
	} {
		if bytes.Compare(pair[0], pair[1]) >= 0 {
			t.Errorf("%x does not sort before %x", pair[0], pair[1])
		}
	}
}

func FuzzLookupKey(f *testing.F) {
	f.Add(appendLookupKey(nil, 3, "l\x00\xff", model.RowKey{Row: model.RowID{9}}, 77))
	f.Add([]byte{kindLookup})
	f.Fuzz(func(t *testing.T, key []byte) {
		group, op, ok := lookupKey(key)
		if !ok {
			return
		}
		if again := binary.BigEndian.AppendUint64(bytes.Clone(group), ^uint64(op)); !bytes.Equal(again, key) {
			t.Errorf("%x became %x", key, again)
		}
	})
}

// FuzzValues: no value makes a reader panic, and what one reads is written
// back the same or refused.
func FuzzValues(f *testing.F) {
	op := model.Op{Kind: model.OpPut, Checksum: 5, ObjectType: "t", ObjectID: "id", Data: "{}"}
	f.Add(appendOp(nil, &op))
	op = model.Op{Kind: model.OpMove, Target: 1 << 40}
	f.Add(appendOp(nil, &op))
	f.Add(appendState(nil, &bucketState{number: 3, head: total{1, 2, 3}, cleared: 9}))
	f.Add(appendHead(nil, &head{buckets: 4}))
	f.Add(appendUser(nil, &store.UserCheckpoints{ID: 1, Head: "h"}))
	f.Fuzz(func(t *testing.T, value []byte) {
		var op model.Op
		if readOp(7, value, &op) == nil {
			var again model.Op
			encoded := appendOp(nil, &op)
			if err := readOp(7, encoded, &again); err != nil || again != op || len(encoded) != opSize(&op) {
				t.Errorf("op %+v became %+v (%v)", op, again, err)
			}
		}
		if s, err := readState(value); err == nil {
			if again, err := readState(appendState(nil, &s)); err != nil || again != s {
				t.Errorf("state %+v became %+v (%v)", s, again, err)
			}
		}
		if h, err := readHead(string(value)); err == nil {
			if again, err := readHead(string(appendHead(nil, h))); err != nil || *again != *h {
				t.Errorf("head %+v became %+v (%v)", h, again, err)
			}
		}
		if u, err := readUser(string(value)); err == nil {
			if again, err := readUser(string(appendUser(nil, &u))); err != nil || again != u {
				t.Errorf("user %+v became %+v (%v)", u, again, err)
			}
		}
	})
}

// TestInUse: a folder belongs to one process.
func TestInUse(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("opened twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir, Options{}).Close(); err != nil {
		t.Fatal(err)
	}
}

// TestUserOfBefore: numbers that were stored before they could expire are read,
// and stay.
func TestUserOfBefore(t *testing.T) {
	want := store.UserCheckpoints{ID: 7, Head: "b", ReachedID: 6, ReachedHead: "a"}
	value := appendUser(nil, &want)
	got, err := readUser(string(value[:len(value)-1]))
	if err != nil || got != want || got.Expired("z", 1<<60) {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
}

// TestHeadOfBefore: a head that was stored before origins were known is read.
func TestHeadOfBefore(t *testing.T) {
	h := &head{StreamHead: model.StreamHead{Epoch: 3, Applied: model.Cursor{Position: "p"}, LastError: "e"}}
	value := appendHead(nil, h)
	value = value[:len(value)-1] // without the length of the origin
	if got, err := readHead(string(value)); err != nil || *got != *h {
		t.Errorf("%+v %v", got, err)
	}
}
