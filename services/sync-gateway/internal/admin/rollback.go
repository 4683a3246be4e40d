package admin

import (
	"fmt"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// rollback deploys the sync config of the version before.
func (a *API) rollback(c *call) (any, error) {
	ctx, cancel := c.bounded()
	defer cancel()
	r, err := a.catalog.List(ctx, &pb.ListRequest{IncludeTerminated: true})
	if err != nil {
		return nil, fmt.Errorf("list sync configs: %w", err)
	}
	to := before(wire.ModelStreams(r.GetStreams()))
	if to == nil {
		return nil, errs.New(errs.S4104, "No earlier sync config to go back to")
	}
	made, err := a.make(c, to.Text(), false)
	if err != nil {
		return nil, err
	}
	return struct {
		slot
		To        string `json:"to"` // whose config it is
		Activated string `json:"activated_at"`
	}{made.(slot), to.Name, stamp(to.Activated)}, nil
}

// before is the stream to whose config to go back: the active one, while another
// config is on its way to replace it, or else the newest one that clients were
// served from with another config than they are now.
func before(streams []model.Stream) *model.Stream {
	var active, next, last *model.Stream
	for i := range streams { // by id
		switch s := &streams[i]; s.State {
		case model.Active, model.Errored:
			active = s
		case model.Processing:
			next = s
		}
	}
	if active == nil {
		return nil
	}
	another := func(s *model.Stream) bool {
		return s.Config != active.Config && (s.Content == "" || s.Content != active.Content)
	}
	if next != nil && another(next) {
		return active
	}
	for i := range streams {
		if s := &streams[i]; s.Activated != 0 && another(s) {
			last = s
		}
	}
	return last
}
