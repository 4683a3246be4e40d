package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/rules"
)

// instance answers like one; states are what the stream is at each look.
func instance(t *testing.T, states ...Stream) *Client {
	t.Helper()
	look := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		fail := func(status int, code, description, details string) {
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"error":{"code":%q,"status":%d,"description":%q,"details":%q}}`, code, status, description, details)
		}
		if r.Header.Get("Authorization") != "Token adm" {
			fail(401, "PSYNC_S2101", "Authorization failed", "")
			return
		}
		switch r.URL.Path {
		case "/api/sync-rules/v1/deploy":
			if string(body) == "bad" {
				fail(422, "PSYNC_R0001", "does not parse", "line 1")
				return
			}
			if r.URL.Query().Get("override") != "true" || r.Header.Get("Content-Type") != "application/yaml" || string(body) != "config" {
				t.Errorf("request %s %q", r.URL, body)
			}
			fmt.Fprint(w, `{"data":{"slot_name":"s_2"}}`)
		case "/api/admin/v1/sluice/status":
			s := Status{Healthy: true, Streams: []Stream{{Name: "s_1", State: "ACTIVE"}}}
			if len(states) > 0 {
				s.Streams = append(s.Streams, states[min(look, len(states)-1)])
				look++
			}
			b, err := json.Marshal(map[string]any{"data": s})
			if err != nil {
				t.Error(err)
			}
			w.Write(b)
		case "/api/admin/v1/sluice/compact":
			if string(body) != `{"buckets":["1#a[]"],"skip_buckets":false,"skip_lookups":true}` {
				t.Errorf("request %q", body)
			}
			fmt.Fprint(w, `{"data":{"buckets":"3","ops_read":7,"ops_moved":"2","ops_cleared":1,"lookups_removed":0}}`)
		case "/api/admin/v1/schema":
			fmt.Fprint(w, `{"data":{"connections":[{"id":"default","tag":"default","schemas":[{"name":"public","tables":[`+
				`{"name":"todos","columns":[{"name":"id","sqlite_type":"text","pg_type":"uuid"},{"name":"n","sqlite_type":"integer"}]}]}]}]}}`)
		default:
			w.WriteHeader(502)
		}
	}))
	t.Cleanup(s.Close)
	return &Client{URL: s.URL, Token: "adm"}
}

// Deploy returns when the stream is active, and tells its states on the way.
func TestDeploy(t *testing.T) {
	c := instance(t, Stream{Name: "s_2", State: "PROCESSING"}, Stream{Name: "s_2", State: "PROCESSING", LastError: "away"},
		Stream{Name: "s_2", State: "PROCESSING"}, Stream{Name: "s_2", State: "ACTIVE"})
	var seen []string
	name, err := c.Deploy(context.Background(), "config", func(s Stream) { seen = append(seen, s.State+s.LastError) })
	if err != nil || name != "s_2" || !slices.Equal(seen, []string{"PROCESSING", "PROCESSINGaway", "PROCESSING", "ACTIVE"}) {
		t.Errorf("%q %v %v", name, err, seen)
	}
}

func TestDeployFails(t *testing.T) {
	c := instance(t, Stream{Name: "s_2", State: "STOP"})
	if _, err := c.Deploy(context.Background(), "config", func(Stream) {}); !errors.Is(err, ErrStopped) {
		t.Errorf("replaced: %v", err)
	}
	if _, err := c.Deploy(context.Background(), "bad", nil); errs.CodeOf(err) != errs.R0001 || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("invalid: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c = instance(t, Stream{Name: "s_2", State: "PROCESSING"})
	if _, err := c.Deploy(ctx, "config", func(Stream) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestStatusAndCompact(t *testing.T) {
	c := instance(t)
	s, raw, err := c.Status(context.Background())
	if err != nil || !s.Healthy || !strings.Contains(string(raw), `"s_1"`) {
		t.Errorf("%+v %s %v", s, raw, err)
	}
	n, err := c.Compact(context.Background(), CompactRequest{Buckets: []string{"1#a[]"}, SkipLookups: true})
	if err != nil || n.Buckets != "3" || n.OpsRead != "7" || n.OpsMoved != "2" {
		t.Errorf("%+v %v", n, err)
	}
}

func TestSchema(t *testing.T) {
	s, err := instance(t).Schema(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := []rules.SchemaColumn{{Name: "id", Type: "text"}, {Name: "n", Type: "integer"}}
	if got := s.Connections["default"]["public"]["todos"].Columns; !slices.Equal(got, want) {
		t.Errorf("%+v", s)
	}
}

func TestRefusals(t *testing.T) {
	c := instance(t)
	c.Token = "other"
	if _, _, err := c.Status(context.Background()); errs.CodeOf(err) != errs.S2101 || !strings.Contains(err.Error(), "api token)") {
		t.Errorf("another token: %v", err)
	}
	c.URL += "/elsewhere"
	if _, _, err := c.Status(context.Background()); err == nil {
		t.Error("a proxy's error counts as success")
	}
	c.URL = "http://127.0.0.1:1"
	if _, _, err := c.Status(context.Background()); err == nil || !strings.Contains(err.Error(), "reach the instance") {
		t.Errorf("nobody there: %v", err)
	}
}
