package bucketstore

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// TestReemit: D2, D6. What is put again is told to readers, counts in checksums,
// survives a restart, and replication goes on after it.
func TestReemit(t *testing.T) {
	dir, nc := t.TempDir(), bus(t)
	next := notices(t, nc)
	i := run(t, dir, nc)
	c := i.begin("config 1")
	id := int64(c.stream)
	i.apply(c.next(6, put(1, `{"v":1}`, "a"), put(2, `{"v":2}`, "a"), put(3, `{"v":3}`, "b")))
	next()
	sum, _ := i.sum(id, 3, "a")
	reemit := func(i *instance, checkpoint, bytes uint64, ops ...uint64) *pb.ReemitReply {
		t.Helper()
		r, err := i.compact.Reemit(t.Context(), &pb.ReemitRequest{Stream: id, Bucket: "a", Checkpoint: checkpoint, Ops: ops, Bytes: bytes})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, ops := range [][]uint64{nil, {0}, {2, 1}, {1, 4}} {
		if _, err := i.compact.Reemit(t.Context(), &pb.ReemitRequest{Stream: id, Bucket: "a", Checkpoint: 3, Ops: ops, Bytes: 100}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("ops %v: %v", ops, err)
		}
	}
	if r := reemit(i, 3, 13, 1, 2); r.GetOps() != 0 || r.GetReason() == "" {
		t.Errorf("14 bytes of data in 13: %v", r)
	}
	if r := reemit(i, 3, 100, 1, 2); r.GetOps() != 2 || r.GetBytes() != 14 || r.GetCheckpoint() != 5 {
		t.Fatalf("reemit: %v", r)
	}
	if n := next(); n.Checkpoint.Op != 5 || n.Checkpoint.Position != position(6) || len(n.Buckets) != 1 || n.Buckets[0] != "a" {
		t.Errorf("notice %+v", n)
	}
	const all = "1 PUT 1 {\"v\":1}\n2 PUT 2 {\"v\":2}\n4 PUT 1 {\"v\":1}\n5 PUT 2 {\"v\":2}"
	if text, _ := i.ops(id, 5, "a"); text != all {
		t.Errorf("ops %q", text)
	}
	if s, n := i.sum(id, 5, "a"); s != 2*sum || n != 4 {
		t.Errorf("D7: checksum %d of %d ops", s, n)
	}
	i.apply(c.next(7, put(1, `{"v":9}`, "a")))
	if r := reemit(i, 5, 100, 4, 5); r.GetOps() != 1 || r.GetCheckpoint() != 7 {
		t.Errorf("a row that has changed since: %v", r)
	}
	i.stop()
	i = run(t, dir, nc)
	if text, _ := i.ops(id, 7, "a"); text != all+"\n6 PUT 1 {\"v\":9}\n7 PUT 2 {\"v\":2}" {
		t.Errorf("after a restart: %q", text)
	}
	i.apply(c.next(8, put(2, `{"v":10}`, "a")))
	if h := i.head(id); h.GetHead().GetPersisted() != 8 {
		t.Errorf("D2: %v", h)
	}
}
