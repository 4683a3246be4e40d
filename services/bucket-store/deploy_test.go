package bucketstore

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
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

// A config of the same content changes the text that is shown and nothing else,
// and one of the content of the active stream gives up what was to replace it.
func TestDeploySameContent(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	deploy := func(config, content string, force, fromFile bool) *pb.DeployReply {
		t.Helper()
		r, err := i.catalog.Deploy(t.Context(), &pb.DeployRequest{Config: config, Content: content, Force: force, FromFile: fromFile})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	expect := func(step string, r *pb.DeployReply, id int64, created bool, want string) {
		t.Helper()
		list, err := i.catalog.List(t.Context(), &pb.ListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, s := range wire.ModelStreams(list.GetStreams()) {
			got += fmt.Sprintf("%d %s %s (%s) ", s.ID, s.State, s.Text(), s.Config)
		}
		if r.GetStream().GetId() != id || r.GetCreated() != created || got != want {
			t.Errorf("%s: %v, want stream %d, created %v\n%s, want\n%s", step, r, id, created, got, want)
		}
	}
	activate := func(id int64) {
		t.Helper()
		c := i.chain(id)
		i.apply(c.next(6, put(1, "{}", "a")))
	}
	expect("first", deploy("a", "A", false, false), 1, true, "1 PROCESSING a (a) ")
	expect("edited while it is processed", deploy("a # one", "A", false, false), 1, false, "1 PROCESSING a # one (a) ")
	activate(1)
	expect("edited", deploy("a # two", "A", false, false), 1, false, "1 ACTIVE a # two (a) ")
	expect("another", deploy("b", "B", false, false), 2, true, "1 ACTIVE a # two (a) 2 PROCESSING b (b) ")
	expect("given up", deploy("a # three", "A", false, false), 1, false, "1 ACTIVE a # three (a) 2 STOP b (b) ")
	expect("as it was", deploy("a", "A", false, false), 1, false, "1 ACTIVE a (a) 2 STOP b (b) ")
	expect("forced", deploy("a # four", "A", true, false), 3, true, "1 ACTIVE a (a) 2 STOP b (b) 3 PROCESSING a # four (a # four) ")
	activate(3)
	expect("from a file", deploy("c", "C", false, true), 4, true, "1 STOP a (a) 2 STOP b (b) 3 ACTIVE a # four (a # four) 4 PROCESSING c (c) ")
	expect("by hand", deploy("b", "B", false, false), 5, true, "1 STOP a (a) 2 STOP b (b) 3 ACTIVE a # four (a # four) 4 STOP c (c) 5 PROCESSING b (b) ")
	kept := deploy("c # edited", "C", false, true)
	expect("from the file, edited", kept, 5, false, "1 STOP a (a) 2 STOP b (b) 3 ACTIVE a # four (a # four) 4 STOP c (c) 5 PROCESSING b (b) ")
	if !kept.GetKept() {
		t.Error("the file is not said to be passed over")
	}
	// What replaces a stream whose history is lost has its text, too.
	deploy("a # five", "A", false, false)
	if _, err := i.repl.Restart(t.Context(), &pb.RestartRequest{Stream: 3, Reason: "lost"}); err != nil {
		t.Fatal(err)
	}
	expect("restarted", deploy("a # six", "A", false, false), 6, false,
		"1 STOP a (a) 2 STOP b (b) 3 ERRORED a # five (a # four) 4 STOP c (c) 5 STOP b (b) 6 PROCESSING a # six (a # four) ")
	// Whoever does not know the content is compared by text.
	expect("no content", deploy("a # seven", "", false, false), 7, true,
		"1 STOP a (a) 2 STOP b (b) 3 ERRORED a # five (a # four) 4 STOP c (c) 5 STOP b (b) 6 STOP a # six (a # four) 7 PROCESSING a # seven (a # seven) ")
	if was := i.activated(3); was == 0 || i.activated(7) != 0 {
		t.Errorf("streams 3 and 7 became active at %d and %d", was, i.activated(7))
	}
}

// A config that needs no more than a stream has is served from that stream: the
// active one, or else the one that is to replace it.
func TestDeployFits(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	ask := func(r *pb.DeployRequest) *pb.DeployReply {
		t.Helper()
		reply, err := i.catalog.Deploy(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	// A config's text is its parts; what it means, too.
	request := func(parts string) *pb.DeployRequest {
		return &pb.DeployRequest{Config: parts, Content: parts, Parts: strings.Fields(parts)}
	}
	state := func() string {
		t.Helper()
		list, err := i.catalog.List(t.Context(), &pb.ListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, s := range wire.ModelStreams(list.GetStreams()) {
			if s.State != model.Stopped {
				all = append(all, fmt.Sprintf("%d %s %s of %s, before %q, file %t", s.ID, s.State, s.Serves(), s.Content, s.Former, s.FromFile))
			}
		}
		return strings.Join(all, "; ")
	}
	deploy := func(r *pb.DeployRequest, created, served, kept bool, replaced int64, want string) {
		t.Helper()
		before := state()
		r.DryRun = true
		foreseen := ask(r)
		if after := state(); before != after {
			t.Errorf("%s: looking changed %s to %s", r.GetConfig(), before, after)
		}
		r.DryRun = false
		got := ask(r)
		if got.GetCreated() != created || got.GetServed() != served || got.GetKept() != kept || got.GetReplaced().GetId() != replaced {
			t.Errorf("%s: %v", r.GetConfig(), got)
		}
		if foreseen.GetCreated() != created || foreseen.GetServed() != served || foreseen.GetKept() != kept || foreseen.GetReplaced().GetId() != replaced {
			t.Errorf("%s: %v was foreseen", r.GetConfig(), foreseen)
		}
		if now := state(); now != want {
			t.Errorf("%s: %s, want %s", r.GetConfig(), now, want)
		}
	}
	file := func(parts string) *pb.DeployRequest {
		r := request(parts)
		r.FromFile = true
		return r
	}
	deploy(file("a b c"), true, false, false, 0, `1 PROCESSING a b c of a b c, before "", file true`)
	deploy(file("a b"), false, true, false, 0, `1 PROCESSING a b of a b c, before "a b c", file true`)
	c := i.chain(1)
	i.apply(c.next(6, put(1, "{}", "a")))
	deploy(request("c"), false, true, false, 0, `1 ACTIVE c of a b c, before "a b", file false`)
	deploy(file("a b"), false, false, true, 0, `1 ACTIVE c of a b c, before "a b", file false`) // as at each start
	deploy(file("a"), false, true, false, 0, `1 ACTIVE a of a b c, before "c", file true`)
	deploy(request("a b c"), false, true, false, 0, `1 ACTIVE a b c of a b c, before "a", file false`)
	deploy(request("d"), true, false, false, 0, `1 ACTIVE a b c of a b c, before "a", file false; 2 PROCESSING d of d, before "", file false`)
	deploy(request("b"), false, true, false, 2, `1 ACTIVE b of a b c, before "a b c", file false`)
	deploy(request("d e"), true, false, false, 0, `1 ACTIVE b of a b c, before "a b c", file false; 3 PROCESSING d e of d e, before "", file false`)
	deploy(request("e"), false, true, false, 0, `1 ACTIVE b of a b c, before "a b c", file false; 3 PROCESSING e of d e, before "d e", file false`)
	// What is built anew has all of it again, and serves the same.
	if _, err := i.repl.Restart(t.Context(), &pb.RestartRequest{Stream: 3, Reason: "lost"}); err != nil {
		t.Fatal(err)
	}
	deploy(request("e"), false, false, false, 0, `1 ACTIVE b of a b c, before "a b c", file false; 4 PROCESSING e of d e, before "d e", file false`)
	deploy(request("d"), false, true, false, 0, `1 ACTIVE b of a b c, before "a b c", file false; 4 PROCESSING d of d e, before "e", file false`)
	// Other values, and write checkpoints of another kind, need another stream.
	other := request("a")
	other.Values = &pb.ValueOptions{Iso8601: true}
	deploy(other, true, false, false, 4, `1 ACTIVE b of a b c, before "a b c", file false; 5 PROCESSING a of a, before "", file false`)
	other = request("a")
	other.CustomCheckpoints = true
	deploy(other, true, false, false, 5, `1 ACTIVE b of a b c, before "a b c", file false; 6 PROCESSING a of a, before "", file false`)
}

func (i *instance) activated(id int64) model.Micros {
	i.t.Helper()
	list, err := i.catalog.List(i.t.Context(), &pb.ListRequest{})
	if err != nil {
		i.t.Fatal(err)
	}
	for _, s := range wire.ModelStreams(list.GetStreams()) {
		if int64(s.ID) == id {
			return s.Activated
		}
	}
	i.t.Fatalf("no stream %d", id)
	return 0
}
