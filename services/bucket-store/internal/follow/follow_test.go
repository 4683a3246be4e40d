package follow

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// storage answers reads of heads.
type storage struct {
	store.Shared
	head func() (model.StreamHead, error)
}

func (s storage) Head(context.Context, model.StreamID) (model.StreamHead, error) { return s.head() }

func headAt(op model.OpID) model.StreamHead {
	return model.StreamHead{Epoch: 1, Persisted: op, Checkpoint: model.Checkpoint{Op: op}, StoredAt: model.Micros(op)}
}

func newFollower(head func() (model.StreamHead, error)) *Follower {
	return New(Options{Store: storage{head: head}, Log: slog.New(slog.DiscardHandler)})
}

func (f *Follower) heard(t *testing.T, run, sequence uint64) {
	t.Helper()
	data, err := proto.Marshal(&pb.CheckpointNotice{Stream: 1, Run: run, Sequence: sequence})
	if err != nil {
		t.Fatal(err)
	}
	f.hear(&nats.Msg{Data: data})
}

// TestHeadAfterNotice: a notice that is heard while the head is read is not
// taken to be in it.
func TestHeadAfterNotice(t *testing.T) {
	var f *Follower
	f = newFollower(func() (model.StreamHead, error) {
		f.heard(t, 7, 6)
		return headAt(5), nil
	})
	f.heard(t, 7, 5)
	head, run, sequence, err := f.Head(t.Context(), 1)
	if err != nil || head != headAt(5) || run != 7 || sequence != 5 {
		t.Errorf("head %+v of run %d, notice %d, %v", head, run, sequence, err)
	}
	if _, run, sequence, _ = f.Head(t.Context(), 1); run != 7 || sequence != 6 {
		t.Errorf("then of run %d, notice %d", run, sequence)
	}
	f.hear(&nats.Msg{Data: []byte("\xff")}) // changes nothing
	if _, run, sequence, _ = f.Head(t.Context(), 2); run != 0 || sequence != 0 {
		t.Errorf("of a stream of which nothing was heard: run %d, notice %d", run, sequence)
	}
}

// TestFollow: heads follow one another forward, and a stream's end is told.
func TestFollow(t *testing.T) {
	f := newFollower(func() (model.StreamHead, error) { return headAt(5), nil })
	look := func(heads map[model.StreamID]model.StreamHead) { f.take(&store.Overview{Owned: true, Heads: heads}) }
	got := make(chan model.OpID)
	ended := make(chan error, 1)
	go func() {
		ended <- f.Follow(t.Context(), 1, func(h model.StreamHead) error {
			got <- h.Persisted
			return nil
		})
	}()
	want := func(op model.OpID) {
		t.Helper()
		if g := <-got; g != op {
			t.Fatalf("told of op %s, want %s", g, op)
		}
	}
	want(5)
	look(map[model.StreamID]model.StreamHead{1: headAt(4)}) // looked at before it was read
	look(map[model.StreamID]model.StreamHead{1: headAt(5)})
	look(map[model.StreamID]model.StreamHead{1: headAt(8), 2: headAt(9)})
	want(8)
	if at := f.StoredAt(); at != 9 || !f.Owned() {
		t.Errorf("the newest head is of %d", at)
	}
	look(map[model.StreamID]model.StreamHead{2: headAt(9)})
	if err := <-ended; !errors.Is(err, store.ErrNoStream) {
		t.Errorf("the end of a stream: %v", err)
	}
}

// TestSees: what is beyond all that is known is looked for, and else refused.
func TestSees(t *testing.T) {
	reads := 0
	f := newFollower(func() (model.StreamHead, error) {
		reads++
		return headAt(7), nil
	})
	f.take(&store.Overview{Heads: map[model.StreamID]model.StreamHead{1: headAt(5)}})
	if err := f.Sees(t.Context(), 1, 5); err != nil || reads != 0 {
		t.Errorf("%v after %d reads", err, reads)
	}
	if err := f.Sees(t.Context(), 1, 7); err != nil || reads != 1 {
		t.Errorf("%v after %d reads", err, reads)
	}
	if err := f.Sees(t.Context(), 1, 8); errs.CodeOf(err) != errs.S2003 || !errs.IsRetry(err) {
		t.Errorf("what is not there: %v", err)
	}
}
