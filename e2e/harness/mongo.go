package harness

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// mongoURI names a MongoDB replica set for storage; without it there is a fake.
const mongoURI = "SLUICE_TEST_MONGODB_URI"

var mongoDatabases atomic.Int32

// mongoStorage is the config of storage in a database of its own: on the server
// that is given, or on a fake one that ends with the test.
func mongoStorage(t testing.TB, bin string) string {
	t.Helper()
	uri := os.Getenv(mongoURI)
	if uri == "" {
		t.Logf("storage is on a fake of MongoDB; %s=mongodb://... names a real one", mongoURI)
		uri = startMongoFake(t, bin)
	}
	return fmt.Sprintf("storage: {type: mongodb, uri: %q, database: sluice_e2e_%d_%d}\n", uri, os.Getpid(), mongoDatabases.Add(1))
}

func startMongoFake(t testing.TB, bin string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "mongofake"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe() // also closed when this process dies
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("mongofake: %v", err)
		}
	})
	uri, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("mongofake: %v", err)
	}
	return strings.TrimSpace(uri)
}
