package admin

import (
	"fmt"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// readTable is a pattern of tables.
type readTable struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
}

// foresee says what deploying a config would do, and does nothing.
func (a *API) foresee(c *call) (any, error) {
	content, err := c.content()
	if err != nil {
		return nil, err
	}
	plan, err := a.compile(content)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.bounded()
	defer cancel()
	s, err := a.streams(ctx)
	switch {
	case err != nil:
		return nil, err
	case s.active == nil:
		return nil, errs.New(errs.S4104, "No active sync config")
	}
	request := a.request(content, plan)
	request.DryRun = true
	r, err := a.catalog.Deploy(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("foresee a deployment: %w", err)
	}
	tables := []readTable{}
	for _, t := range r.GetTables() {
		tables = append(tables, readTable{t.GetSchema(), t.GetName()})
	}
	return struct {
		Current  string      `json:"current"` // text of the active config
		Copies   bool        `json:"copies"`  // a new stream would be made
		Serves   bool        `json:"serves"`  // clients would be served by another config, from the same data
		Adds     bool        `json:"adds"`    // and once what that needs besides is copied, from Tables
		Tables   []readTable `json:"tables"`
		Reason   string      `json:"reason"`   // why a new stream would be made
		Replaced string      `json:"replaced"` // stream on its way that would be given up
	}{s.active.Text(), r.GetCreated(), r.GetServed(), r.GetAdded(), tables, r.GetReason(), r.GetReplaced().GetName()}, nil
}

// rollback deploys the sync config of the version before.
func (a *API) rollback(c *call) (any, error) {
	ctx, cancel := c.bounded()
	defer cancel()
	r, err := a.catalog.List(ctx, &pb.ListRequest{IncludeTerminated: true})
	if err != nil {
		return nil, fmt.Errorf("list sync configs: %w", err)
	}
	to, text := before(wire.ModelStreams(r.GetStreams()))
	if to == nil {
		return nil, errs.New(errs.S4104, "No earlier sync config to go back to")
	}
	name, err := a.make(c, "rollback", text, false)
	if err != nil {
		return nil, err
	}
	return struct {
		slot
		To        string `json:"to"` // whose config it is
		Activated string `json:"activated_at"`
	}{slot{name}, to.Name, stamp(to.Activated)}, nil
}

// before is the config to go back to, and the stream that clients were served
// from by it: the active one, while another is on its way to replace it, or what
// another needs is being added to it; or else
// the one by which the active stream served clients before; or that of the newest
// stream that they were served from by another config than they are now.
func before(streams []model.Stream) (from *model.Stream, text string) {
	var active, next *model.Stream
	for i := range streams { // by id
		switch s := &streams[i]; s.State {
		case model.Active, model.Errored:
			active = s
		case model.Processing:
			next = s
		}
	}
	if active == nil {
		return nil, ""
	}
	another := func(s *model.Stream) bool {
		return s.Text() != active.Text() && (s.Serves() == "" || s.Serves() != active.Serves())
	}
	switch {
	case next != nil && another(next) || active.Next != "":
		return active, active.Text()
	case active.Former != "":
		return active, active.Former
	}
	for i := range streams {
		if s := &streams[i]; s.Activated != 0 && another(s) {
			from, text = s, s.Text()
		}
	}
	return from, text
}
