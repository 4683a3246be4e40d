package fanout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
)

// canaryBucket does not exist: the canary has no data, whatever the sync config
// says. Its state is read all the same.
const canaryBucket = "sluice#canary[]"

// canaryQuerier gives the canary its bucket.
type canaryQuerier struct{}

func (canaryQuerier) Streams() []rules.StreamInfo { return nil }
func (canaryQuerier) Static() bool                { return false }
func (canaryQuerier) Resolve(func([]string) ([][]string, error)) (*rules.Buckets, error) {
	return &rules.Buckets{Buckets: []rules.Bucket{{ID: canaryBucket, Priority: 3}}}, nil
}

const (
	canaryLife = time.Hour // of its token, as it were
	// canaryPause is between two canaries, if one dies.
	canaryPause = time.Second
)

// Canary keeps a session of nobody alive until ctx ends. Each heartbeat that is
// noticed goes to it as a write checkpoint does to a client: its view is computed,
// from a read of the store, and lines are written, which the canary reads.
// delivered is called with the heartbeat of each checkpoint that it was completely
// told of.
func (h *Hub) Canary(ctx context.Context, delivered func(model.Micros)) {
	for ctx.Err() == nil {
		if err := h.oneCanary(ctx, delivered); err != nil && ctx.Err() == nil {
			h.log.Debug("the canary has ended", "stream", int64(h.Stream), "error", err)
		}
		select {
		case <-time.After(canaryPause):
		case <-ctx.Done():
		}
	}
}

func (h *Hub) oneCanary(ctx context.Context, delivered func(model.Micros)) error {
	var reason error
	s := h.session(Request{
		Expires: time.Now().Add(canaryLife), Ended: func(sum Summary) { reason = sum.Reason },
	}, new(Stats))
	s.querier = canaryQuerier{}
	if err := s.first(ctx, ""); err != nil {
		return err
	}
	s.Start(&canarySink{delivered: delivered})
	select {
	case <-s.Done():
	case <-ctx.Done():
		s.Close(io.EOF)
		<-s.Done()
	}
	return reason
}

// beats tells a canary, if there is one, of a heartbeat. hub.mu is held.
func (s *Session) beats(at model.Checkpoint, beat model.Micros) {
	if s == nil || uint64(beat) <= s.write {
		return
	}
	s.write = uint64(beat)
	s.marks.at = later(later(s.marks.at, at), s.at)
	s.marks.write, s.marks.all = true, true
	s.wake()
}

// canarySink reads what a client would.
type canarySink struct {
	delivered func(model.Micros)
	beat      model.Micros // of the checkpoint that is being told
	sent      atomic.Int64
}

var errCanaryData = errors.New("the canary was sent data")

func (c *canarySink) Send(l *Lines) error {
	for _, p := range l.Parts {
		if p.Chunk != nil {
			return errCanaryData
		}
	}
	c.sent.Add(int64(l.Len()))
	for text := range bytes.Lines(l.Plain) {
		type checkpoint struct {
			Write string `json:"write_checkpoint"`
		}
		var line struct {
			Checkpoint *checkpoint      `json:"checkpoint"`
			Diff       *checkpoint      `json:"checkpoint_diff"`
			Complete   *json.RawMessage `json:"checkpoint_complete"`
		}
		if err := json.Unmarshal(text, &line); err != nil {
			return fmt.Errorf("the canary cannot read its line: %w", err)
		}
		if line.Checkpoint == nil {
			line.Checkpoint = line.Diff
		}
		switch {
		case line.Checkpoint != nil:
			at, err := strconv.ParseInt(line.Checkpoint.Write, 10, 64)
			if err != nil {
				at = 0 // there was no heartbeat yet
			}
			c.beat = model.Micros(at)
		case line.Complete != nil:
			c.delivered(c.beat)
		}
	}
	return nil
}

func (c *canarySink) End(error)   {}
func (c *canarySink) Abort()      {}
func (c *canarySink) Sent() int64 { return c.sent.Load() }

// Noticed is the newest heartbeat that the hub has noticed.
func (h *Hub) Noticed() model.Micros {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.beat
}
