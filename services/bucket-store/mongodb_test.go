package bucketstore

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/services/bucket-store/internal/mongotest"
)

// TestMongoDB: whether a database can be used is said, and that it is not copied.
// (What several processes on it do, TestReplicas and TestFresh hold.)
func TestMongoDB(t *testing.T) {
	server := mongotest.Start(t)
	cfg := Config{MongoDB: &MongoDB{Connection: server.Config("d")}}
	if where, err := Check(cfg); err != nil || where != cfg.MongoDB.Connection.Redacted() {
		t.Errorf("checked: %s %v", where, err)
	}
	if _, err := Copy(t.Context(), cfg, Config{Dir: t.TempDir()}, slog.New(slog.DiscardHandler), func(CopyProgress) {}); err == nil || !strings.Contains(err.Error(), "MongoDB") {
		t.Errorf("copied: %v", err)
	}
	server.Stop()
	cfg.MongoDB.Connection.URI = strings.Replace(cfg.MongoDB.Connection.URI, "5000", "100", 1)
	if _, err := Check(cfg); err == nil {
		t.Error("a server that is away can be used")
	}
}
