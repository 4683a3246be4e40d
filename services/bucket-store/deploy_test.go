package bucketstore

import (
	"testing"

	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// The configured sync config, deployed again at each start, does not undo what
// was deployed by hand after it; a changed one does.
func TestDeployFromFile(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	file := func(config string) *pb.DeployReply {
		t.Helper()
		r, err := i.catalog.Deploy(t.Context(), &pb.DeployRequest{Config: config, FromFile: true})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for n, step := range []struct {
		reply         *pb.DeployReply
		id            int64
		created, kept bool
	}{
		{file("one"), 1, true, false},
		{file("one"), 1, false, false},
		{file("two"), 2, true, false},
		{file("one"), 3, true, false}, // rolled back: nothing was deployed by hand
		{i.deploy("by hand"), 4, true, false},
		{file("one"), 4, false, true},
		{file("two"), 4, false, true},
		{file("three"), 5, true, false},
		{file("one"), 6, true, false},
	} {
		if r := step.reply; r.GetStream().GetId() != step.id || r.GetCreated() != step.created || r.GetKept() != step.kept {
			t.Errorf("step %d: %v, want stream %d, created %v, kept %v", n, r, step.id, step.created, step.kept)
		}
	}
}
