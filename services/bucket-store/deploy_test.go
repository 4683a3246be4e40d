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
	// Whoever does not know the content is compared by text.
	expect("no content", deploy("a # five", "", false, false), 6, true,
		"1 STOP a (a) 2 STOP b (b) 3 ACTIVE a # four (a # four) 4 STOP c (c) 5 STOP b (b) 6 PROCESSING a # five (a # five) ")
	if was := i.activated(3); was == 0 || i.activated(6) != 0 {
		t.Errorf("streams 3 and 6 became active at %d and %d", was, i.activated(6))
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
	deploy(request("d"), false, true, false, 0, `1 ACTIVE b of a b c, before "a b c", file false; 3 PROCESSING d of d e, before "e", file false`)
	// Other values, and write checkpoints of another kind, need another stream.
	other := request("a")
	other.Values = &pb.ValueOptions{Iso8601: true}
	deploy(other, true, false, false, 3, `1 ACTIVE b of a b c, before "a b c", file false; 4 PROCESSING a of a, before "", file false`)
	other = request("a")
	other.CustomCheckpoints = true
	deploy(other, true, false, false, 4, `1 ACTIVE b of a b c, before "a b c", file false; 5 PROCESSING a of a, before "", file false`)
}

// A config that needs more than the active stream has is added to it: clients are
// served by it as soon as what it lacks is copied, unless another one was deployed
// until then, and what was made once is there for all that follow.
func TestDeployAdds(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	// A config's text is its parts; each reads the table of its name, and E none.
	request := func(parts string) *pb.DeployRequest {
		r := &pb.DeployRequest{Config: parts, Content: parts, Parts: strings.Fields(parts)}
		for _, p := range r.Parts {
			r.PartTables = append(r.PartTables, &pb.PartTables{})
			if p != "E" {
				table := &pb.TablePattern{Connection: "c", Schema: "s", Name: p}
				r.Tables, r.PartTables[len(r.PartTables)-1].Tables = append(r.Tables, table), []*pb.TablePattern{table}
			}
		}
		return r
	}
	file := func(parts string) *pb.DeployRequest {
		r := request(parts)
		r.FromFile = true
		return r
	}
	ask := func(r *pb.DeployRequest) *pb.DeployReply {
		t.Helper()
		reply, err := i.catalog.Deploy(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	state := func() string {
		t.Helper()
		list, err := i.catalog.List(t.Context(), &pb.ListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, s := range wire.ModelStreams(list.GetStreams()) {
			if s.State == model.Stopped {
				continue
			}
			text := fmt.Sprintf("%d %s %q", s.ID, s.State, s.Config)
			for _, l := range s.Layers {
				text += fmt.Sprintf(" + %q", strings.Join(l.Parts, " "))
			}
			text += fmt.Sprintf(", %d copied: %q, before %q", s.Layered, s.Text(), s.Former)
			if s.Next != "" {
				text += fmt.Sprintf(", next %q", s.Next)
			}
			all = append(all, text)
		}
		return strings.Join(all, "; ")
	}
	deploy := func(r *pb.DeployRequest, fate, want string) {
		t.Helper()
		show := func(r *pb.DeployReply) string {
			text := ""
			for name, is := range map[string]bool{"created": r.GetCreated(), "served": r.GetServed(), "kept": r.GetKept(), "added": r.GetAdded()} {
				if is {
					text += name
				}
			}
			for _, p := range r.GetTables() {
				text += " " + p.GetName()
			}
			if r.GetReason() != "" {
				text += ": " + r.GetReason()
			}
			return text
		}
		before := state()
		r.DryRun = true
		if got := show(ask(r)); got != fate {
			t.Errorf("%s: %s was foreseen, not %s", r.GetConfig(), got, fate)
		}
		if after := state(); before != after {
			t.Errorf("%s: looking changed %s to %s", r.GetConfig(), before, after)
		}
		r.DryRun = false
		if got := show(ask(r)); got != fate {
			t.Errorf("%s: %s, want %s", r.GetConfig(), got, fate)
		}
		if now := state(); now != want {
			t.Errorf("%s:\n%s, want\n%s", r.GetConfig(), now, want)
		}
	}
	c := i.chain
	at := 5
	// session replicates the stream as it is then, and says what is copied.
	session := func(layers uint32) {
		t.Helper()
		opened := i.open(1, "r1")
		if n := len(opened.GetDefinition().GetLayers()); n < int(layers) {
			t.Fatalf("the session has %d layers", n)
		}
		at++
		head := wire.ModelStreamHead(opened.GetHead())
		b := (&chain{stream: 1, epoch: model.Epoch(opened.GetEpoch()), at: head.Applied}).next(at)
		b.Meta.Layer = layers
		i.apply(b)
	}
	show := func(when, want string) {
		t.Helper()
		if got := state(); got != want {
			t.Errorf("%s:\n%s, want\n%s", when, got, want)
		}
	}
	deploy(file("a b"), "created", `1 PROCESSING "a b", 0 copied: "a b", before ""`)
	c(1)
	session(0)
	// What is edited and what is new is copied for.
	deploy(request("a c d"), "added c d", `1 ACTIVE "a b" + "c d", 0 copied: "a b", before "", next "a c d"`)
	deploy(request("a c d"), "added", `1 ACTIVE "a b" + "c d", 0 copied: "a b", before "", next "a c d"`)
	deploy(file("a b"), "kept", `1 ACTIVE "a b" + "c d", 0 copied: "a b", before "", next "a c d"`) // as at each start
	session(0)
	show("not copied", `1 ACTIVE "a b" + "c d", 0 copied: "a b", before "", next "a c d"`)
	session(1)
	show("copied", `1 ACTIVE "a b" + "c d", 1 copied: "a c d", before "a b"`)
	// The way back, and anything else that is there, is served at once.
	deploy(request("a b"), "served", `1 ACTIVE "a b" + "c d", 1 copied: "a b", before "a c d"`)
	deploy(request("b c"), "served", `1 ACTIVE "a b" + "c d", 1 copied: "b c", before "a b"`)
	// One that is given up goes on being copied, and need not be again.
	deploy(request("a e"), "added e", `1 ACTIVE "a b" + "c d" + "e", 1 copied: "b c", before "a b", next "a e"`)
	deploy(request("b c"), "", `1 ACTIVE "a b" + "c d" + "e", 1 copied: "b c", before "a b"`)
	deploy(file("a f e"), "added e f", `1 ACTIVE "a b" + "c d" + "e" + "f", 1 copied: "b c", before "a b", next "a f e"`)
	deploy(request("e"), "added e f", `1 ACTIVE "a b" + "c d" + "e" + "f", 1 copied: "b c", before "a b", next "e"`)
	session(2)
	show("one of two copied", `1 ACTIVE "a b" + "c d" + "e" + "f", 2 copied: "b c", before "a b", next "e"`)
	session(3)
	show("both copied", `1 ACTIVE "a b" + "c d" + "e" + "f", 3 copied: "e", before "b c"`)
	// What cannot be added makes a new stream, which the next one gives up.
	const now = `1 ACTIVE "a b" + "c d" + "e" + "f", 3 copied: "e", before "b c"`
	deploy(request("x y"), "created: they have nothing in common", now+`; 2 PROCESSING "x y", 0 copied: "x y", before ""`)
	deploy(request("a E"), "created: the event definitions differ", now+`; 3 PROCESSING "a E", 0 copied: "a E", before ""`)
	other := request("a g")
	other.Values = &pb.ValueOptions{Iso8601: true}
	deploy(other, "created: the source's values are converted in another way", now+`; 4 PROCESSING "a g", 0 copied: "a g", before ""`)
	other = request("a g")
	other.CustomCheckpoints = true
	deploy(other, "created: write checkpoints come from elsewhere", now+`; 5 PROCESSING "a g", 0 copied: "a g", before ""`)
	other = request("a g")
	other.PartTables = nil
	deploy(other, "created: one of the two was deployed by a version that did not say what it is made of", now+`; 6 PROCESSING "a g", 0 copied: "a g", before ""`)
	deploy(request("a f"), "served", `1 ACTIVE "a b" + "c d" + "e" + "f", 3 copied: "a f", before "e"`)
	deploy(request("a g"), "added g", `1 ACTIVE "a b" + "c d" + "e" + "f" + "g", 3 copied: "a f", before "e", next "a g"`)
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
