package gateway

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sluicesync/sluice/services/sync-gateway/internal/rsocket"
)

// socketClient speaks RSocket over another implementation of WebSocket.
type socketClient struct {
	t  testing.TB
	ws *websocket.Conn
}

func (h *house) dial(t testing.TB, compress bool) *socketClient {
	t.Helper()
	o := &websocket.DialOptions{CompressionMode: websocket.CompressionDisabled, HTTPClient: h.client()}
	if compress {
		o.CompressionMode = websocket.CompressionNoContextTakeover
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ws, res, err := websocket.Dial(ctx, strings.Replace(h.url, "http", "ws", 1)+"/sync/stream", o)
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Header.Get("Sec-WebSocket-Extensions"); (got != "") != compress {
		t.Fatalf("extensions %q", got)
	}
	ws.SetReadLimit(1 << 25)
	t.Cleanup(func() { _ = ws.CloseNow() })
	return &socketClient{t, ws}
}

func (c *socketClient) send(b []byte) {
	c.t.Helper()
	if err := c.ws.Write(c.t.Context(), websocket.MessageBinary, b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *socketClient) next() (rsocket.Frame, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	typ, b, err := c.ws.Read(ctx)
	if err != nil {
		return rsocket.Frame{}, err
	}
	if typ != websocket.MessageBinary {
		c.t.Fatalf("message of type %v", typ)
	}
	return rsocket.Decode(b)
}

func (c *socketClient) frame() rsocket.Frame {
	c.t.Helper()
	f, err := c.next()
	if err != nil {
		c.t.Fatal(err)
	}
	return f
}

// line reads the next payload's document as JSON.
func (c *socketClient) line(stream uint32) string {
	c.t.Helper()
	f := c.frame()
	if f.Type != rsocket.Payload || f.Flags != rsocket.FlagNext || f.Stream != stream {
		c.t.Fatalf("frame %+v: %s", f, f.Data)
	}
	b, err := rsocket.JSON(f.Data)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

func frameHeader(stream uint32, t rsocket.Type, flags uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, stream)
	return binary.BigEndian.AppendUint16(b, uint16(t)<<10|flags)
}

func setup(mime string, metadata []byte) []byte {
	b := frameHeader(0, rsocket.Setup, rsocket.FlagMetadata)
	b = append(b, 0, 1, 0, 0)
	b = binary.BigEndian.AppendUint32(b, 20000)
	b = binary.BigEndian.AppendUint32(b, 90000)
	b = append(append(b, byte(len(mime))), mime...)
	b = append(append(b, byte(len(mime))), mime...)
	return append(withLength(b, metadata), "{}"...)
}

func withLength(b, metadata []byte) []byte {
	n := len(metadata)
	return append(append(b, byte(n>>16), byte(n>>8), byte(n)), metadata...)
}

func requestStream(stream, n uint32, flags uint16, metadata, data []byte) []byte {
	b := frameHeader(stream, rsocket.RequestStream, rsocket.FlagMetadata|flags)
	b = binary.BigEndian.AppendUint32(b, n)
	return append(withLength(b, metadata), data...)
}

func requestN(stream, n uint32) []byte {
	return binary.BigEndian.AppendUint32(frameHeader(stream, rsocket.RequestN, 0), n)
}

func keepalive(data string) []byte {
	b := frameHeader(0, rsocket.Keepalive, rsocket.FlagRespond)
	return append(binary.BigEndian.AppendUint64(b, 0), data...)
}

// bson makes a document of strings, booleans and documents.
func bson(fields ...any) []byte {
	b := []byte{0, 0, 0, 0}
	for i := 0; i < len(fields); i += 2 {
		name := fields[i].(string)
		switch v := fields[i+1].(type) {
		case string:
			b = append(append(append(b, 2), name...), 0)
			b = binary.LittleEndian.AppendUint32(b, uint32(len(v)+1))
			b = append(append(b, v...), 0)
		case bool:
			b = append(append(append(b, 8), name...), 0)
			b = append(b, map[bool]byte{true: 1}[v])
		case []byte:
			b = append(append(append(append(b, 3), name...), 0), v...)
		}
	}
	b = append(b, 0)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b
}

var streamRoute = []byte(`{"path":"/sync/stream"}`)

func authMetadata(user string) []byte {
	b, _ := json.Marshal(map[string]string{"token": "Token " + mint(user, nil), "user_agent": "test"})
	return b
}

// TestSocket runs the sessions of spec/07: SETUP and REQUEST_STREAM at once,
// JSON and BSON, with and without permessage-deflate, credit line by line.
func TestSocket(t *testing.T) {
	for _, compress := range []bool{false, true} {
		for _, mime := range []string{"application/json", "application/bson"} {
			t.Run(fmt.Sprintf("%s/deflate=%t", mime, compress), func(t *testing.T) {
				h := newHouse(t, nil)
				mine := `1#mine["u1"]`
				big := strings.Repeat("0123456789", 300)
				row := `{"id":"l1","owner":"u1","text":"` + big + `"}`
				h.store.commit(func(tx *tx) { tx.put(mine, "lists", "l1", row) })
				c := h.dial(t, compress)
				if mime == "application/json" {
					c.send(setup(mime, authMetadata("u1")))
					c.send(requestStream(1, 1, 0, streamRoute, []byte(`{"raw_data":true,"client_id":"c1"}`)))
				} else {
					c.send(setup(mime, bson("token", "Bearer "+mint("u1", nil))))
					c.send(requestStream(1, 1, 0, bson("path", "/sync/stream"), bson("raw_data", true, "client_id", "c1", "parameters", bson())))
				}
				if l := c.line(1); !strings.HasPrefix(l, `{"checkpoint":{"last_op_id":"1","buckets":[{"bucket":"1#all[]"`) {
					t.Fatal(l)
				}
				// Keepalives are answered although the stream has no credit, and
				// nothing else came before.
				c.send(keepalive("ping"))
				if f := c.frame(); f.Type != rsocket.Keepalive || f.Flags != 0 || string(f.Data) != "ping" {
					t.Fatalf("%+v", f)
				}
				c.send(requestN(1, 1))
				l := c.line(1)
				text, _ := json.Marshal(row)
				if !strings.Contains(l, `"data":`+string(text)) || !strings.HasPrefix(l, `{"data":{"bucket":"1#mine[\"u1\"]","after":"0","has_more":false`) {
					t.Fatal(l)
				}
				c.send(requestN(1, 5))
				if l := c.line(1); l != `{"checkpoint_complete":{"last_op_id":"1"}}` {
					t.Fatal(l)
				}
				h.store.commit(func(tx *tx) { tx.put(mine, "lists", "l2", `{"id":"l2"}`) })
				for _, want := range []string{`{"checkpoint_diff":`, `{"data":`, `{"checkpoint_complete":{"last_op_id":"2"}}`} {
					if l := c.line(1); !strings.HasPrefix(l, want) {
						t.Fatalf("got %s, want %s", l, want)
					}
				}
				// A chunk that is too large to be copied between the other lines.
				noise := make([]byte, 32<<10)
				rand.NewChaCha8([32]byte{}).Read(noise)
				row = fmt.Sprintf(`{"id":"l3","text":"%x"}`, noise)
				h.store.commit(func(tx *tx) { tx.put(mine, "lists", "l3", row) })
				c.send(requestN(1, 3))
				text, _ = json.Marshal(row)
				for _, want := range []string{`{"checkpoint_diff":`, `"data":` + string(text), `{"checkpoint_complete":{"last_op_id":"3"}}`} {
					if l := c.line(1); !strings.Contains(l, want) {
						t.Fatalf("got %s, want %s", l, want)
					}
				}
				// CANCEL, then another stream on the same socket, in fragments.
				c.send(frameHeader(1, rsocket.Cancel, 0))
				if mime == "application/json" {
					c.send(requestStream(3, 100, rsocket.FlagFollows, streamRoute, []byte(`{"raw_`)))
					c.send(append(frameHeader(3, rsocket.Payload, rsocket.FlagNext), `data":true}`...))
					if l := c.line(3); !strings.HasPrefix(l, `{"checkpoint":`) {
						t.Fatal(l)
					}
				}
			})
		}
	}
}

// TestSocketIdle: a stream that waits for news has one goroutine, that which reads.
func TestSocketIdle(t *testing.T) {
	h := newHouse(t, nil)
	c := h.dial(t, false)
	c.send(setup("application/json", authMetadata("u1")))
	c.send(requestStream(1, 100, 0, streamRoute, []byte(`{"raw_data":true}`)))
	for !strings.Contains(c.line(1), "checkpoint_complete") {
	}
	stacks := make([]byte, 1<<20)
	wait(t, func() bool {
		text := string(stacks[:runtime.Stack(stacks, true)])
		return strings.Count(text, "transport.(*socket).") == 1 && !strings.Contains(text, "transport.(*socketStream)") && !strings.Contains(text, "fanout.(*Session)")
	})
}

// TestSocketRefused: what a client gets for a request that is not served.
func TestSocketRefused(t *testing.T) {
	h := newHouse(t, nil)
	wrong, _ := json.Marshal(map[string]string{"token": "Token " + mint("u1", map[string]any{"aud": "someone-else"})})
	for _, x := range []struct {
		name   string
		frames [][]byte
		stream uint32
		code   uint32
		want   string
	}{
		{"wrong audience", [][]byte{setup("application/json", wrong)}, 0, rsocket.RejectedSetup, `[PSYNC_S2105] Unexpected "aud" claim value: "someone-else"`},
		{"no token", [][]byte{setup("application/json", []byte(`{}`))}, 0, rsocket.RejectedSetup, "[PSYNC_S2106] Authentication required"},
		{"no metadata", [][]byte{setup("application/json", nil)}, 0, rsocket.RejectedSetup, "[PSYNC_S2101] No authentication metadata in the SETUP frame"},
		{"media type", [][]byte{setup("text/plain", authMetadata("u1"))}, 0, rsocket.RejectedSetup, "[PSYNC_S2004]"},
		{"not setup", [][]byte{keepalive("")}, 0, rsocket.UnsupportedSetup, "[PSYNC_S2001]"},
		{"resume", [][]byte{frameHeader(0, rsocket.Resume, 0)}, 0, rsocket.RejectedResume, "[PSYNC_S2001]"},
		{"garbage", [][]byte{{1, 2}}, 0, rsocket.InvalidSetup, "[PSYNC_S2001]"},
		{"path", [][]byte{setup("application/json", authMetadata("u1")), requestStream(1, 1, 0, []byte(`{"path":"/x"}`), []byte(`{}`))}, 1, rsocket.ApplicationError, "[PSYNC_S2002]"},
		{"body", [][]byte{setup("application/json", authMetadata("u1")), requestStream(1, 1, 0, streamRoute, []byte(`{"buckets":1}`))}, 1, rsocket.ApplicationError, "[PSYNC_S2001] Validation failed"},
		{"even stream", [][]byte{setup("application/json", authMetadata("u1")), requestStream(2, 1, 0, streamRoute, []byte(`{}`))}, 0, rsocket.ConnectionError, "[PSYNC_S2001] stream id"},
		{"garbage later", [][]byte{setup("application/json", authMetadata("u1")), {1, 2}}, 0, rsocket.ConnectionError, "[PSYNC_S2001] malformed"},
		{"second setup", [][]byte{setup("application/json", authMetadata("u1")), setup("application/json", authMetadata("u1"))}, 0, rsocket.ConnectionError, "[PSYNC_S2001] frame out of place"},
		{"unknown frame", [][]byte{setup("application/json", authMetadata("u1")), frameHeader(0, 0x3e, 0)}, 0, rsocket.ConnectionError, "[PSYNC_S2001] unknown frame"},
		{"two of one stream", [][]byte{setup("application/json", authMetadata("u1")), requestStream(1, 1, rsocket.FlagFollows, streamRoute, nil), requestStream(1, 1, 0, streamRoute, nil)}, 0, rsocket.ConnectionError, "[PSYNC_S2001] stream id"},
		{"fire and forget", [][]byte{setup("application/json", authMetadata("u1")), frameHeader(1, 5, 0)}, 1, rsocket.ApplicationError, "[PSYNC_S2002]"},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := h.dial(t, false)
			for _, f := range x.frames {
				c.send(f)
			}
			f := c.frame()
			if f.Type != rsocket.Error || f.Stream != x.stream || f.Code != x.code || !strings.HasPrefix(string(f.Data), x.want) {
				t.Fatalf("%+v %s", f, f.Data)
			}
			if x.stream == 0 {
				if _, err := c.next(); websocket.CloseStatus(err) != websocket.StatusNoStatusRcvd {
					t.Fatalf("%v, want an empty close frame", err)
				}
			}
		})
	}
	t.Run("limit", func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.MaxStreams = 3 })
		var cs []*socketClient
		for range 4 {
			c := h.dial(t, false)
			c.send(setup("application/json", authMetadata("u1")))
			cs = append(cs, c)
			if len(cs) < 4 {
				c.send(keepalive("x"))
				c.frame()
			}
		}
		if f := cs[3].frame(); f.Code != rsocket.RejectedSetup || !strings.HasPrefix(string(f.Data), "[PSYNC_S2304]") {
			t.Fatalf("%+v %s", f, f.Data)
		}
	})
}

// TestSocketCancelledFragments: what has come of cancelled requests does not
// count against later ones.
func TestSocketCancelledFragments(t *testing.T) {
	h := newHouse(t, nil)
	c := h.dial(t, false)
	c.send(setup("application/json", authMetadata("u1")))
	part := make([]byte, 1<<20)
	for range 12 { // 10 MiB is the limit
		c.send(requestStream(1, 1, rsocket.FlagFollows, streamRoute, part))
		c.send(frameHeader(1, rsocket.Cancel, 0))
	}
	c.send(requestStream(3, 1, rsocket.FlagFollows, streamRoute, []byte(`{"raw_`)))
	c.send(append(frameHeader(3, rsocket.Payload, rsocket.FlagNext), `data":true}`...))
	if l := c.line(3); !strings.HasPrefix(l, `{"checkpoint":`) {
		t.Fatal(l)
	}
}

// TestSocketExpiry: INV-33 on a WebSocket, the line and then the end.
func TestSocketExpiry(t *testing.T) {
	h := newHouse(t, nil)
	c := h.dial(t, false)
	m, _ := json.Marshal(map[string]string{"token": "Token " + mint("u1", map[string]any{"exp": time.Now().Add(-time.Second).Unix()})})
	c.send(setup("application/json", m))
	c.send(requestStream(1, 10, 0, streamRoute, []byte(`{}`)))
	if l := c.line(1); l != `{"token_expires_in":0}` {
		t.Fatal(l)
	}
	if f := c.frame(); f.Type != rsocket.Payload || f.Flags != rsocket.FlagComplete {
		t.Fatalf("%+v", f)
	}
}

// TestSocketDrain: a stream is completed when the gateway stops.
func TestSocketDrain(t *testing.T) {
	h := newHouse(t, nil)
	c := h.dial(t, false)
	c.send(setup("application/json", authMetadata("u1")))
	c.send(requestStream(1, 100, 0, streamRoute, []byte(`{}`)))
	c.line(1)
	c.line(1)
	h.stop()
	if f := c.frame(); f.Type != rsocket.Payload || f.Flags != rsocket.FlagComplete {
		t.Fatalf("%+v", f)
	}
	if _, err := c.next(); err == nil {
		t.Fatal("the socket stays open")
	}
}
