package transport

import (
	"net/http"
	"strconv"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/reply"
)

// data wraps a success (spec/02 §1).
type data struct {
	Data any `json:"data"`
}

// writeCheckpoint serves GET /write-checkpoint2.json.
func (s *Server) writeCheckpoint(c *call) error {
	client := c.r.URL.Query().Get("client_id")
	token, err := c.authorize()
	if err != nil {
		return err
	}
	if err := s.checks.Enter(c.r.Context()); err != nil {
		return err
	}
	defer s.checks.Leave()
	id, err := s.o.WriteCheckpoint(c.span.In(c.r.Context()), userKey(token.UserID, client), 0)
	if err != nil {
		return err
	}
	reply.JSON(c.w, http.StatusOK, data{struct {
		WriteCheckpoint string `json:"write_checkpoint"`
	}{strconv.FormatUint(id, 10)}})
	return nil
}

// maxSmallBody bounds bodies other than a sync stream's.
const maxSmallBody = 1 << 20

// checkpointRequest serves POST /sync/checkpoint-request.
func (s *Server) checkpointRequest(c *call) error {
	body, err := c.body(maxSmallBody)
	if err != nil {
		return err
	}
	client, id, err := parseCheckpoint(body, c.r.URL.Query())
	if err != nil {
		return err
	}
	token, err := c.authorize()
	if err != nil {
		return err
	}
	if err := s.checks.Enter(c.r.Context()); err != nil {
		return err
	}
	defer s.checks.Leave()
	if id, err = s.o.WriteCheckpoint(c.span.In(c.r.Context()), userKey(token.UserID, client), id); err != nil {
		return err
	}
	reply.JSON(c.w, http.StatusOK, data{struct {
		ID string `json:"checkpoint_request_id"`
	}{strconv.FormatUint(id, 10)}})
	return nil
}

const (
	legacyWait = 50 * time.Second
	legacyPoll = 30 * time.Millisecond
)

// legacyCheckpoint serves GET /write-checkpoint.json: it waits until a
// checkpoint has passed the source's present position.
func (s *Server) legacyCheckpoint(c *call) error {
	if _, err := c.authorize(); err != nil {
		return err
	}
	if err := s.checks.Enter(c.r.Context()); err != nil {
		return err
	}
	defer s.checks.Leave()
	ctx := c.span.In(c.r.Context())
	head, err := s.o.Position(ctx)
	if err != nil {
		return err
	}
	s.o.Mark()
	limit := time.NewTimer(legacyWait)
	defer limit.Stop()
	poll := time.NewTicker(legacyPoll)
	defer poll.Stop()
	for {
		hub, err := s.o.Hub()
		if err != nil {
			return err
		}
		if at := hub.Applied(); at.Position.Source() >= head {
			reply.JSON(c.w, http.StatusOK, data{struct {
				Checkpoint string `json:"checkpoint"`
			}{at.Op.String()}})
			return nil
		}
		select {
		case <-poll.C:
		case <-limit.C:
			return errs.New(errs.S2403, "Timeout while waiting for checkpoint").Retryable()
		case <-s.ctx.Done():
			return errs.New(errs.S2003, "Service is restarting").Retryable()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// probe serves the probes (spec/06 §7.2).
func (s *Server) probe(c *call, path string) error {
	h := service.Status{}
	if s.o.Health != nil {
		h = s.o.Health.Snapshot()
	}
	var good bool
	switch path {
	case "/probes/startup":
		good = h.Started
	case "/probes/liveness":
		good = true
	case "/probes/readiness":
		good = h.Ready
	default:
		return errs.New(errs.S2002, "Path not found")
	}
	status := http.StatusOK
	if !good {
		status = http.StatusBadRequest
	}
	reply.JSON(c.w, status, struct {
		Ready     bool   `json:"ready"`
		Started   bool   `json:"started"`
		TouchedAt string `json:"touched_at"`
	}{h.Ready, h.Started, h.Touched.UTC().Format(time.RFC3339Nano)})
	return nil
}
