package session

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/sluicesync/sluice/libs/model"
)

// TestGolden runs transcripts. Commands:
//
//	new b=after …           a stream whose client holds these buckets
//	view c [write=n] [full] then lines: bucket priority checksum count [reasons]
//	next                    the actions until one needs an answer
//	chunk next count [more] [target=n] [invalid]   answers a Get
func TestGolden(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var s *Session
		var get *Fetch
		next := func(b *strings.Builder) {
			get = nil
			for {
				a := s.Next()
				switch a.Kind {
				case Wait:
					b.WriteString("wait")
					if s.Stale() {
						fmt.Fprintf(b, " for a newer checkpoint, at least %d", s.Required())
					}
					b.WriteByte('\n')
					return
				case Get:
					f := a.Fetch
					get = &f
					fmt.Fprintf(b, "get %s (%d, %d] of %d", f.Bucket, f.After, f.UpTo, f.Count)
					for _, x := range s.Ahead(nil, 8) {
						fmt.Fprintf(b, ", then %s (%d", x.Bucket, x.After)
					}
					b.WriteByte('\n')
					return
				case Send:
					b.WriteString(show(a.Line))
					b.WriteByte('\n')
				}
			}
		}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var b strings.Builder
			switch d.Cmd {
			case "new":
				positions := map[string]model.OpID{}
				for _, a := range d.CmdArgs {
					n, err := strconv.Atoi(a.Vals[0])
					if err != nil {
						t.Fatal(err)
					}
					positions[a.Key] = model.OpID(n)
				}
				s = New(positions)
				return ""
			case "view":
				if !s.Ready() {
					return "not ready\n"
				}
				v := View{}
				for i, a := range d.CmdArgs {
					switch {
					case i == 0:
						n, _ := strconv.Atoi(a.Key)
						v.Checkpoint = model.OpID(n)
					case a.Key == "write":
						n, _ := strconv.Atoi(a.Vals[0])
						v.WriteCheckpoint = uint64(n)
					case a.Key == "full":
						v.Full = true
						v.Streams = []Stream{{Name: "s", IsDefault: true}}
					}
				}
				for l := range strings.Lines(d.Input) {
					var x Bucket
					if _, err := fmt.Sscan(l, &x.ID, &x.Priority, &x.State.Checksum, &x.State.Count); err != nil {
						t.Fatalf("%q: %v", l, err)
					}
					x.Reasons = []Reason{{Default: true}}
					v.Buckets = append(v.Buckets, x)
				}
				if !s.Offer(v) {
					return "nothing new\n"
				}
				next(&b)
			case "next":
				next(&b)
			case "chunk":
				if get == nil {
					return "nothing was asked for\n"
				}
				var c Chunk
				c.After = get.After
				for i, a := range d.CmdArgs {
					n := 0
					switch {
					case i < 2:
						n, _ = strconv.Atoi(a.Key)
					case len(a.Vals) > 0:
						n, _ = strconv.Atoi(a.Vals[0])
					}
					switch {
					case i == 0:
						c.NextAfter = model.OpID(n)
					case i == 1:
						c.Count = n
					case a.Key == "more":
						c.HasMore = true
					case a.Key == "target":
						c.Target = model.OpID(n)
					case a.Key == "invalid":
						c.Invalid = true
					}
				}
				s.Chunk(c)
				next(&b)
			}
			return b.String()
		})
	})
}

func show(l Line) string {
	buckets := func(bs []Bucket) string {
		var out []string
		for _, b := range bs {
			out = append(out, fmt.Sprintf("%s/%d sum=%d n=%d", b.ID, b.Priority, b.State.Checksum, b.State.Count))
		}
		return "[" + strings.Join(out, ", ") + "]"
	}
	switch l := l.(type) {
	case Checkpoint:
		return fmt.Sprintf("checkpoint %d write=%d %s", l.LastOp, l.WriteCheckpoint, buckets(l.Buckets))
	case CheckpointDiff:
		return fmt.Sprintf("checkpoint_diff %d write=%d removed=%v updated=%s", l.LastOp, l.WriteCheckpoint, l.Removed, buckets(l.Updated))
	case Data:
		return fmt.Sprintf("data %s (%d, %d] n=%d more=%t", l.Bucket, l.After, l.NextAfter, l.Count, l.HasMore)
	case PartialComplete:
		return fmt.Sprintf("partial_checkpoint_complete %d priority=%d", l.LastOp, l.Priority)
	case Complete:
		return fmt.Sprintf("checkpoint_complete %d", l.LastOp)
	}
	return fmt.Sprintf("%T", l)
}
