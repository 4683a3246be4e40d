package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
)

// Kind is how a stream's lines come.
type Kind struct {
	Name string
	// Socket is WebSocket with RSocket inside, whose lines are BSON documents;
	// else it is HTTP.
	Socket bool
	// BSON is the form of the lines by HTTP; else it is NDJSON.
	BSON bool
	// Coding is the only Accept-Encoding of a stream by HTTP; "" = identity.
	Coding string
	// Deflate offers permessage-deflate on a WebSocket.
	Deflate bool
}

var (
	ndjson = Kind{Name: "NDJSON"}
	socket = Kind{Name: "WebSocket", Socket: true}
)

// Client is who opens a stream.
type Client struct {
	URL   string
	Token string
	ID    string
	Kind  Kind
	// Buffer is how many bytes are read at once.
	Buffer int
}

// Stream is one client's sync stream: it reads lines, counts ops and tells of
// complete checkpoints. It keeps nothing, so thousands fit beside the server.
type Stream struct {
	Ops   int
	Bytes int64 // of lines
	// Seq is the highest sequence number seen in a row, written by the scenario.
	Seq int64
	// WriteCheckpoint is the newest one announced.
	WriteCheckpoint uint64
	LastOpID        string

	client Client
	conn   *conn
	lines  lines
	ctx    context.Context // of the connection, whose end closes it
	stop   func() bool     // the end of ctx no longer closes conn

	// Of the buckets: the first one's name as it is in JSON, without quotes;
	// then the checksums as announced and as summed up. A CLEAR after the first op
	// ends the checks: then the ops before it would have to be known.
	bucket        string
	expected, sum uint32
	unchecked     bool
}

// lines are those of one connection. next reads one and notes in s what it says.
type lines interface {
	next(s *Stream) (complete bool, err error)
	close()
}

// Open connects a stream that has nothing yet. The end of ctx breaks it.
func (c Client) Open(ctx context.Context) (*Stream, error) {
	s := &Stream{client: c}
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Resume connects a stream that was closed again, from what it has.
func (s *Stream) Resume(ctx context.Context) error { return s.open(ctx) }

func (s *Stream) open(ctx context.Context) error {
	buffer := headBuffer
	if s.client.Kind.Socket {
		buffer = s.client.Buffer
	}
	c, err := dial(ctx, s.client.URL, buffer)
	if err != nil {
		return fmt.Errorf("open a stream: %w", err)
	}
	s.conn, s.ctx = c, ctx
	s.stop = context.AfterFunc(ctx, func() { c.Close() })
	open := openHTTP
	if s.client.Kind.Socket {
		open = openSocket
	}
	if s.lines, err = open(s); err != nil {
		s.stop()
		c.Close()
		return fmt.Errorf("open a stream: %w", cmp.Or(context.Cause(ctx), err))
	}
	return nil
}

// request is the body that asks for the stream.
func (s *Stream) request() ([]byte, error) {
	type position struct {
		Name  json.RawMessage `json:"name"`
		After string          `json:"after"`
	}
	positions := []position{}
	if s.Ops > 0 {
		positions = append(positions, position{json.RawMessage(`"` + s.bucket + `"`), s.LastOpID})
	}
	return json.Marshal(map[string]any{
		"buckets": positions, "include_checksum": true, "raw_data": true, "binary_data": true, "client_id": s.client.ID, "parameters": map[string]any{},
	})
}

// Close ends the stream.
func (s *Stream) Close() {
	s.stop()
	s.lines.close()
	s.conn.Close()
}

// Complete reads until the next checkpoint_complete.
func (s *Stream) Complete() error {
	for {
		complete, err := s.lines.next(s)
		if err != nil {
			return fmt.Errorf("read the stream after %d ops: %w", s.Ops, cmp.Or(context.Cause(s.ctx), err))
		}
		if complete && !s.unchecked && s.sum != s.expected {
			return fmt.Errorf("checksum %d at op %s, the server says %d", s.sum, s.LastOpID, s.expected)
		}
		if complete {
			return nil
		}
	}
}

// read reads until the client holds this many ops.
func (s *Stream) read(ops int) error {
	for s.Ops < ops {
		if err := s.Complete(); err != nil {
			return fmt.Errorf("%d of %d ops have come: %w", s.Ops, ops, err)
		}
	}
	return nil
}
