// Package admin speaks with a running instance through its admin API
// (spec/06 §6 and our own status and compact).
package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
)

// maxReply bounds what is read of a reply.
const maxReply = 64 << 20

// Client is the admin API of one instance.
type Client struct {
	// URL is http://host:port, Token one of the instance's api.tokens, or of its
	// sluice.api.tokens.
	URL, Token string
	HTTP       *http.Client // nil = the default one
}

// Pinned speaks only with who shows the first certificate in this PEM text,
// whatever its name and whoever signed it.
func Pinned(certificate []byte) *http.Client {
	block, rest := pem.Decode(certificate)
	for block != nil && block.Type != "CERTIFICATE" {
		block, rest = pem.Decode(rest)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection asks for more
		VerifyConnection: func(s tls.ConnectionState) error {
			if block == nil || !bytes.Equal(s.PeerCertificates[0].Raw, block.Bytes) {
				return errors.New("the instance does not show the certificate of the config; give its address with --url")
			}
			return nil
		},
	}}}
}

// Stage is one stage of the pipeline.
type Stage struct {
	Name        string     `json:"name"`
	HeartbeatAt *time.Time `json:"heartbeat_at"`
	AgeMS       *int64     `json:"age_ms"`
	OK          bool       `json:"ok"`
	Detail      string     `json:"detail"`
}

// Link is a peer of the gateway that was asked.
type Link struct {
	Peer  string `json:"peer"`
	AgeMS int64  `json:"age_ms"` // since it was last heard
	OK    bool   `json:"ok"`
}

// Stream is a replication stream.
type Stream struct {
	ID         int64       `json:"id"`
	Name       string      `json:"name"`
	State      string      `json:"state"`
	Checkpoint json.Number `json:"checkpoint"`
	Position   string      `json:"position"`
	LastError  string      `json:"last_error"`
	DeployedAt *time.Time  `json:"deployed_at"`
	DeployedBy string      `json:"deployed_by"`
	Copy       *Copy       `json:"copy"`
	// Adding: clients are served by the config that was deployed last when Copy is
	// done.
	Adding bool `json:"adding"`
}

// Copy is how far a copy is.
type Copy struct {
	Compares   string `json:"compares"` // why it is not the first one
	Tables     int    `json:"tables"`
	TablesDone int    `json:"tables_done"`
	Rows       uint64 `json:"rows"`
	Estimate   uint64 `json:"rows_estimated"`
	ETA        *int64 `json:"eta_ms"` // nil = not known
}

// String is for people.
func (c *Copy) String() string {
	percent := uint64(0)
	if c.Estimate > 0 {
		percent = min(100*c.Rows/c.Estimate, 100)
	}
	s := fmt.Sprintf("copying %d%%, %d of about %d rows, %d of %d tables", percent, c.Rows, c.Estimate, c.TablesDone, c.Tables)
	if c.Compares != "" {
		s = fmt.Sprintf("re-snapshot, %d of %d tables, %d of about %d rows: %s; what is stored is served meanwhile", c.TablesDone, c.Tables, c.Rows, c.Estimate, c.Compares)
	}
	if c.ETA != nil {
		s += ", about " + (time.Duration(*c.ETA) * time.Millisecond).Round(time.Second).String() + " left"
	}
	return s
}

// Status is the state of an instance.
type Status struct {
	Healthy  bool     `json:"healthy"`
	Stages   []Stage  `json:"stages"`
	Links    []Link   `json:"links"`
	Streams  []Stream `json:"streams"`
	Sessions int64    `json:"sessions"`
}

// Sessions are the streams of one gateway.
type Sessions struct {
	Gateway  string    `json:"gateway"`
	Total    int       `json:"total"`
	Sessions []Session `json:"sessions"`
}

// Session is one client's stream, and how far it is behind.
type Session struct {
	User       string    `json:"user"`
	Client     string    `json:"client_id"`
	Agent      string    `json:"agent"`
	Transport  string    `json:"transport"`
	Since      time.Time `json:"since"`
	Buckets    int       `json:"buckets"`
	Checkpoint string    `json:"checkpoint"`
	Behind     struct {
		Checkpoints uint64 `json:"checkpoints"`
		Ops         uint64 `json:"ops"`
		MS          int64  `json:"ms"`
	} `json:"behind"`
}

// Compaction is what a run of the compactor did.
type Compaction struct {
	Buckets        json.Number `json:"buckets"`
	OpsRead        json.Number `json:"ops_read"`
	OpsMoved       json.Number `json:"ops_moved"`
	OpsCleared     json.Number `json:"ops_cleared"`
	LookupsRemoved json.Number `json:"lookups_removed"`
}

// CompactRequest says what to compact.
type CompactRequest struct {
	Buckets     []string `json:"buckets"`
	SkipBuckets bool     `json:"skip_buckets"`
	SkipLookups bool     `json:"skip_lookups"`
}

// Status returns the state of the instance, and its JSON.
func (c *Client) Status(ctx context.Context) (Status, json.RawMessage, error) {
	var raw json.RawMessage
	if err := c.post(ctx, "/api/admin/v1/sluice/status", "application/json", []byte("{}"), &raw); err != nil {
		return Status{}, nil, err
	}
	var s Status
	if err := json.Unmarshal(raw, &s); err != nil {
		return Status{}, nil, fmt.Errorf("read the status: %w", err)
	}
	return s, raw, nil
}

// Sessions returns the streams that are most behind, at most so many, of one
// user or of all ("").
func (c *Client) Sessions(ctx context.Context, user string, limit int) (Sessions, error) {
	body, err := json.Marshal(map[string]any{"user": user, "limit": limit})
	if err != nil {
		return Sessions{}, fmt.Errorf("make the request: %w", err)
	}
	var out Sessions
	return out, c.post(ctx, "/api/admin/v1/sluice/sessions", "application/json", body, &out)
}

// Teardown stops every stream, and returns the names of those that are not
// cleaned up yet. Called again it tells how that goes.
func (c *Client) Teardown(ctx context.Context) (left []string, err error) {
	var out struct {
		Left []struct {
			Name string `json:"slot_name"`
		} `json:"left"`
	}
	if err := c.post(ctx, "/api/admin/v1/sluice/teardown", "application/json", []byte(`{"confirm":"TEARDOWN"}`), &out); err != nil {
		return nil, err
	}
	for _, s := range out.Left {
		left = append(left, s.Name)
	}
	return left, nil
}

// Config returns the sync config that is active, or else the one that is being
// deployed; "" = neither.
func (c *Client) Config(ctx context.Context) (string, error) {
	type status struct {
		Content string `json:"content"`
	}
	var out struct {
		Active    status `json:"active_sync_rules"`
		Deploying status `json:"deploying_sync_rules"`
	}
	if err := c.post(ctx, "/api/admin/v1/diagnostics", "application/json", []byte(`{"sync_rules_content":true}`), &out); err != nil {
		return "", err
	}
	return cmp.Or(out.Active.Content, out.Deploying.Content), nil
}

// Schema returns the schema of the instance's source database.
func (c *Client) Schema(ctx context.Context) (*rules.Schema, error) {
	var reply struct {
		Connections []struct {
			Schemas []struct {
				Name   string `json:"name"`
				Tables []struct {
					Name    string `json:"name"`
					Columns []struct {
						Name string `json:"name"`
						Type string `json:"sqlite_type"`
					} `json:"columns"`
				} `json:"tables"`
			} `json:"schemas"`
		} `json:"connections"`
	}
	if err := c.post(ctx, "/api/admin/v1/schema", "application/json", []byte("{}"), &reply); err != nil {
		return nil, err
	}
	out := &rules.Schema{Connections: map[string]map[string]map[string]rules.SchemaTable{}}
	for _, connection := range reply.Connections {
		schemas := map[string]map[string]rules.SchemaTable{}
		out.Connections[model.DefaultConnection] = schemas
		for _, schema := range connection.Schemas {
			tables := map[string]rules.SchemaTable{}
			schemas[schema.Name] = tables
			for _, t := range schema.Tables {
				var table rules.SchemaTable
				for _, column := range t.Columns {
					table.Columns = append(table.Columns, rules.SchemaColumn{Name: column.Name, Type: column.Type})
				}
				tables[t.Name] = table
			}
		}
	}
	return out, nil
}

// Table is a table of the source; Rows and Bytes are estimates, nil = unknown.
type Table struct {
	Schema, Name string
	Rows, Bytes  *int64
}

// Tables returns the tables of the instance's source database.
func (c *Client) Tables(ctx context.Context) ([]Table, error) {
	var reply struct {
		Connections []struct {
			Schemas []struct {
				Name   string `json:"name"`
				Tables []struct {
					Name  string `json:"name"`
					Rows  *int64 `json:"estimated_rows"`
					Bytes *int64 `json:"estimated_bytes"`
				} `json:"tables"`
			} `json:"schemas"`
		} `json:"connections"`
	}
	if err := c.post(ctx, "/api/admin/v1/schema", "application/json", []byte("{}"), &reply); err != nil {
		return nil, err
	}
	var out []Table
	for _, connection := range reply.Connections {
		for _, schema := range connection.Schemas {
			for _, t := range schema.Tables {
				out = append(out, Table{schema.Name, t.Name, t.Rows, t.Bytes})
			}
		}
	}
	return out, nil
}

// PlanTable is a pattern of tables.
type PlanTable struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
}

// Plan is what deploying a config would do.
type Plan struct {
	Current  string      `json:"current"` // text of the active config
	Copies   bool        `json:"copies"`  // tables are copied for it
	Serves   bool        `json:"serves"`  // clients are served by another config, from the same data
	Adds     bool        `json:"adds"`    // and are once what it needs besides is copied, from Tables
	Tables   []PlanTable `json:"tables"`
	Reason   string      `json:"reason"`   // why all is copied
	Replaced string      `json:"replaced"` // stream that is not active yet and is given up
}

// Plan says what deploying a sync config would do.
func (c *Client) Plan(ctx context.Context, config string) (p Plan, err error) {
	return p, c.post(ctx, "/api/admin/v1/sluice/plan", "application/yaml", []byte(config), &p)
}

// Compact compacts now and returns when it is done.
func (c *Client) Compact(ctx context.Context, r CompactRequest) (Compaction, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return Compaction{}, fmt.Errorf("make the request: %w", err)
	}
	var out Compaction
	return out, c.post(ctx, "/api/admin/v1/sluice/compact", "application/json", body, &out)
}

// Backup is a backup that was made where bucket-store runs.
type Backup struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
	Files int    `json:"files"`
}

// Backup makes a backup of the storage and returns when it is done. name "" = the
// time.
func (c *Client) Backup(ctx context.Context, name string) (Backup, error) {
	body, err := json.Marshal(map[string]string{"name": name})
	if err != nil {
		return Backup{}, fmt.Errorf("make the request: %w", err)
	}
	var out Backup
	return out, c.post(ctx, "/api/admin/v1/sluice/backup", "application/json", body, &out)
}

// ErrStopped is a deployment that another one replaced.
var ErrStopped = errors.New("another sync config was deployed in the meantime")

const (
	pollInterval = 100 * time.Millisecond
	// tellAgain is how often the progress of a copy is told.
	tellAgain = 5 * time.Second
	// errorFor is how long a stream may show the same error before Deploy
	// counts it as failed: shorter ones are those of a source that is away for a
	// moment.
	errorFor = 10 * time.Second
	// unreachableFor is how long an instance may be away meanwhile.
	unreachableFor = 10 * time.Second
)

// Deploy deploys a sync config and waits until it is active. It returns the
// name of its stream. progress is told each change of its state,
// and every few seconds how far the copy is.
func (c *Client) Deploy(ctx context.Context, config string, progress func(Stream)) (string, error) {
	var reply struct {
		Name string `json:"slot_name"`
	}
	if err := c.post(ctx, "/api/sync-rules/v1/deploy?override=true", "application/yaml", []byte(config), &reply); err != nil {
		return "", err
	}
	return reply.Name, c.wait(ctx, reply.Name, progress)
}

// Rollback deploys the sync config that was active before, says whose it is, and
// waits until it is active. It returns the name of its stream.
func (c *Client) Rollback(ctx context.Context, to func(name, activated string), progress func(Stream)) (string, error) {
	var reply struct {
		Name      string `json:"slot_name"`
		To        string `json:"to"`
		Activated string `json:"activated_at"`
	}
	if err := c.post(ctx, "/api/admin/v1/sluice/rollback", "application/json", []byte("{}"), &reply); err != nil {
		return "", err
	}
	to(reply.To, reply.Activated)
	return reply.Name, c.wait(ctx, reply.Name, progress)
}

// wait waits until the stream is active.
func (c *Client) wait(ctx context.Context, name string, progress func(Stream)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var last Stream
	var failing, failed, away, told time.Time // failed: what is added could not be copied, first
	for {
		s, _, err := c.Status(ctx)
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("wait for stream %s to become active: %w", name, ctx.Err())
		case err == nil:
			away = time.Time{}
		case away.IsZero():
			away = now
		case now.Sub(away) > unreachableFor:
			return err
		}
		for _, stream := range s.Streams {
			if stream.Name != name {
				continue
			}
			if stream.LastError != "" && failed.IsZero() {
				failed = now
			}
			if stream.State != last.State || stream.LastError != last.LastError {
				progress(stream)
				failing, told = now, now
			} else if stream.Copy != nil && now.Sub(told) >= tellAgain {
				progress(stream)
				told = now
			}
			last = stream
			switch {
			case stream.State == "ACTIVE" && !stream.Adding:
				return nil
			case stream.Adding && stream.LastError != "" && now.Sub(failed) > errorFor: // in between, the rest goes on
				return fmt.Errorf("what the config adds to stream %s does not become active: %s", name, stream.LastError)
			case stream.State == "STOP" || stream.State == "TERMINATED":
				return ErrStopped
			case stream.LastError != "" && now.Sub(failing) > errorFor:
				return fmt.Errorf("stream %s does not become active: %s", name, stream.LastError)
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// UnreachableError is an instance that cannot be reached.
type UnreachableError struct{ Err error }

func (e *UnreachableError) Error() string { return "reach the instance: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// post calls path and reads data into out.
func (c *Client) post(ctx context.Context, path, contentType string, body []byte, out any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.URL, "/")+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make the request: %w", err)
	}
	r.Header.Set("Authorization", "Token "+c.Token)
	r.Header.Set("Content-Type", contentType)
	h := c.HTTP
	if h == nil {
		h = http.DefaultClient
	}
	resp, err := h.Do(r)
	if err != nil {
		return &UnreachableError{err}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return fmt.Errorf("read the reply of %s: %w", path, err)
	}
	var reply struct {
		Data  json.RawMessage `json:"data"`
		Error *struct {
			Code        string          `json:"code"`
			Description string          `json:"description"`
			Details     json.RawMessage `json:"details"`
		} `json:"error"`
	}
	jsonErr := json.Unmarshal(text, &reply)
	if resp.StatusCode != http.StatusOK {
		if jsonErr != nil || reply.Error == nil {
			return fmt.Errorf("%s: HTTP status %s", path, resp.Status)
		}
		message := reply.Error.Description
		var details string
		if err := json.Unmarshal(reply.Error.Details, &details); err == nil && details != "" {
			message += ": " + details
		}
		if errs.Code(reply.Error.Code) == errs.S2101 {
			message += " (the instance does not know this api token)"
		}
		return errs.New(errs.Code(reply.Error.Code), "%s", message)
	}
	if jsonErr != nil {
		return fmt.Errorf("read the reply of %s: %w", path, jsonErr)
	}
	if err := json.Unmarshal(reply.Data, out); err != nil {
		return fmt.Errorf("read the reply of %s: %w", path, err)
	}
	return nil
}
