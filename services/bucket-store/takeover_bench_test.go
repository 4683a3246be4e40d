package bucketstore

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
	"github.com/sluicesync/sluice/services/bucket-store/internal/postgres"
)

// BenchmarkTakeover kills the bucket-store that writes (SIGKILL), of two
// processes on one Postgres, and times how long it is until a batch is committed
// by the other.
func BenchmarkTakeover(b *testing.B) {
	pg := pgtest.Start(b)
	url, _ := busAt(b)
	dir := b.TempDir()
	bin := filepath.Join(dir, "bucket-store")
	if out, err := exec.Command("go", "build", "-o", bin, "./cmd/bucket-store").CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	// begin starts a process, and waits until it serves reads.
	begin := func() (i *instance, kill func()) {
		b.Helper()
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		address := lis.Addr().String()
		lis.Close()
		file := filepath.Join(dir, "config.yaml")
		text := fmt.Sprintf("storage: {type: postgresql, sslmode: disable, uri: %q}\nsluice: {nats: {url: %q}, bucket_store: {address: %q}}\n", pg.URL, url, address)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
		cmd := exec.Command(bin, "--config", file)
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		i, hangUp := callers(b, address, service.Env{Log: slog.New(slog.DiscardHandler)})
		kill = func() {
			if cmd.ProcessState != nil {
				return
			}
			if err := cmd.Process.Kill(); err != nil {
				b.Error(err)
			}
			_ = cmd.Wait() // says that it was killed
			hangUp()
		}
		b.Cleanup(kill)
		if _, err := i.catalog.List(b.Context(), &pb.ListRequest{}, grpc.WaitForReady(true)); err != nil {
			b.Fatal(err)
		}
		return i, kill
	}
	s, err := postgres.Open(b.Context(), pg.Config(), postgres.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	first, killFirst := begin()
	first.connect()
	c := first.begin("config 1")
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		second, killSecond := begin()
		second.connect()
		if v, err := s.Overview(b.Context()); err != nil || v.Address != first.address {
			b.Fatalf("%s writes, not %s: %v", v.Address, first.address, err)
		}
		first.insist(c.next(10+2*n, put(1, "x", "a")))
		batch := c.next(11+2*n, put(2, "x", "a"))
		time.Sleep(time.Duration(n%10) * 75 * time.Millisecond) // at any time since the right was renewed
		b.StartTimer()
		killed := time.Now()
		killFirst()
		for committed := false; !committed; {
			if time.Since(killed) > time.Minute {
				b.Fatal("nobody takes over")
			}
			second.lastID++
			if err := second.append.Send(&pb.ApplyRequest{Id: second.lastID, Batch: wire.EvaluatedBatch(batch)}); err != nil {
				second.connect() // Recv says why
				continue
			}
			r, err := second.append.Recv()
			if err != nil {
				second.connect()
			}
			committed = err == nil && r.GetResult() == pb.ApplyResult_APPLY_RESULT_COMMITTED
		}
		took = append(took, time.Since(killed))
		first, killFirst = second, killSecond
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds(), "s/median")
	b.ReportMetric(took[len(took)-1].Seconds(), "s/longest")
}
