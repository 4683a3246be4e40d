package bucketstore

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// TestBackup: a backup that was made while the service ran serves the same after
// it was restored, and batches of after the backup do not get in (D5).
func TestBackup(t *testing.T) {
	nc := bus(t)
	dir := filepath.Join(t.TempDir(), "store")
	i := run(t, dir, nc)
	c := i.begin("config 1")
	id := int64(c.stream)
	i.apply(c.next(6, put(1, `{"v":1}`, "a")))
	storage := pb.NewStorageClient(i.conn)
	for _, name := range []string{"../store", "a/b", ".", "-x", "a\x00", strings.Repeat("x", 101)} {
		if _, err := storage.Backup(t.Context(), &pb.BackupRequest{Name: name}); errs.CodeOf(errs.FromGRPC(err)) != errs.S2001 {
			t.Errorf("a backup named %q: %v", name, err)
		}
	}
	made, err := storage.Backup(t.Context(), &pb.BackupRequest{Name: "nightly"})
	if err != nil || made.GetPath() != filepath.Join(dir+"-backups", "nightly") || made.GetBytes() == 0 || made.GetFiles() == 0 {
		t.Fatalf("backup: %v %v", made, err)
	}
	if _, err := storage.Backup(t.Context(), &pb.BackupRequest{Name: "nightly"}); errs.CodeOf(errs.FromGRPC(err)) != errs.S2001 {
		t.Errorf("the same backup again: %v", err)
	}
	if r, err := storage.Backup(t.Context(), &pb.BackupRequest{}); err != nil || !strings.HasPrefix(r.GetPath(), dir+"-backups/20") {
		t.Errorf("a backup without a name: %v %v", r, err)
	}
	later := c.next(7, put(1, `{"v":2}`, "a"))
	i.apply(later)
	i.stop()

	log := slog.New(slog.DiscardHandler)
	if _, err := Restore(Config{Dir: dir}, made.GetPath(), log); errs.CodeOf(err) != errs.S2001 {
		t.Errorf("restored over the store: %v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	r, err := Restore(Config{Dir: dir}, made.GetPath(), log)
	if err != nil || r.Dir != dir || len(r.Streams) != 1 || !strings.HasSuffix(r.Streams[0], " ACTIVE at "+string(position(6))) {
		t.Fatalf("restore: %+v %v", r, err)
	}
	i = run(t, dir, nc)
	head := i.head(id).GetHead()
	if text, _ := i.ops(id, head.GetCheckpoint().GetOp(), "a"); text != `1 PUT 1 {"v":1}` {
		t.Errorf("restored: %s", text)
	}
	i.answer(i.send(later), pb.ApplyResult_APPLY_RESULT_OBSOLETE)
	c = i.chain(id)
	c.at = later.Previous
	i.apply(c.next(7, put(2, `{"v":3}`, "a")))
	head = i.head(id).GetHead()
	text, _ := i.ops(id, head.GetCheckpoint().GetOp(), "a")
	if lines := strings.Split(text, "\n"); len(lines) != 2 || !strings.HasSuffix(lines[1], ` PUT 2 {"v":3}`) || head.GetCheckpoint().GetOp() < 1<<32 || model.OpID(head.GetPersisted()) < 1<<32 {
		t.Errorf("D2: after the restore: %s at %v", text, head.GetCheckpoint())
	}
}
