package bucketstore

import (
	"fmt"
	"strings"
	"testing"

	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// Teardown stops what lives, again and again, until all of it is cleared; what
// is deployed after it lives. Who deployed what is kept, also by the stream
// that replaces one whose history was lost.
func TestTeardown(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	deploy := func(config, by string) int64 {
		t.Helper()
		r, err := i.catalog.Deploy(t.Context(), &pb.DeployRequest{Config: config, DeployedBy: by})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetStream().GetId()
	}
	expect := func(want string) {
		t.Helper()
		list, err := i.catalog.List(t.Context(), &pb.ListRequest{IncludeTerminated: true})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range list.GetStreams() {
			got = append(got, fmt.Sprintf("%d %s %s", s.GetId(), strings.TrimPrefix(s.GetState().String(), "STREAM_STATE_"), s.GetDeployedBy()))
		}
		if g := strings.Join(got, ", "); g != want {
			t.Fatalf("got %s, want %s", g, want)
		}
	}
	tearDown := func(want int) {
		t.Helper()
		r, err := i.catalog.Teardown(t.Context(), &pb.TeardownRequest{})
		if err != nil || len(r.GetStreams()) != want {
			t.Fatalf("%v %v, want %d streams", r, err, want)
		}
	}
	tearDown(0)
	deploy("one", "ann")
	deploy("two", "bob")
	expect("1 STOPPED ann, 2 PROCESSING bob")
	for range 2 {
		tearDown(2)
		expect("1 STOPPED ann, 2 STOPPED bob")
	}
	for n := range 2 {
		if _, err := i.repl.Terminate(t.Context(), &pb.TerminateRequest{Stream: int64(2 - n)}); err != nil {
			t.Fatal(err)
		}
		tearDown(1 - n)
	}
	deploy("two", "")
	expect("1 TERMINATED ann, 2 TERMINATED bob, 3 PROCESSING ")
}
