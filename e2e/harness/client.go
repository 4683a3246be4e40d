package harness

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Driver is one Node process that holds client databases of the official SDK, or
// tabs of a browser that do (StartWebDriver).
type Driver struct {
	t   testing.TB
	dir string
	cmd *exec.Cmd
	in  io.WriteCloser
	log tail

	mu      sync.Mutex
	next    int
	waiting map[int]chan answer // guarded by mu; one answer each, so capacity 1
	clients map[string]*Client  // guarded by mu
	ended   error               // guarded by mu; set once, when the process's output ends
	uploads sync.WaitGroup
	done    chan struct{} // closed by read when the process's output ends
}

type answer struct {
	result json.RawMessage
	err    error
}

// message is a line of the driver process.
type message struct {
	ID     int             `json:"id"`
	OK     bool            `json:"ok"`
	Result json.RawMessage `json:"result"`
	Error  string          `json:"error"`
	Event  string          `json:"event"`
	Client string          `json:"client"`
	Upload int             `json:"upload"`
	Crud   []Crud          `json:"crud"`
}

// Crud is a local change that the client uploads to the app's backend.
type Crud struct {
	Op    string         `json:"op"` // PUT, PATCH, DELETE
	Table string         `json:"table"`
	ID    string         `json:"id"`
	Data  map[string]any `json:"data"`
}

// Use makes t the test that later calls fail: a subtest calls it first. It lasts
// until the subtest ends.
func (d *Driver) Use(t testing.TB) { use(&d.t, t) }

// StartDriver starts the process; it ends with the test.
func StartDriver(t testing.TB, dir string) *Driver {
	t.Helper()
	return StartDriverAt(t, dir, nil)
}

// StartDriverAt starts it in a place.
func StartDriverAt(t testing.TB, dir string, at Place) *Driver {
	t.Helper()
	return startDriver(t, dir, at, exec.Command(filepath.Join(Repo(), "e2e", "client", "run"), "client.mjs"))
}

func startDriver(t testing.TB, dir string, at Place, cmd *exec.Cmd) *Driver {
	t.Helper()
	d := &Driver{t: t, dir: dir, cmd: cmd, waiting: map[int]chan answer{}, clients: map[string]*Client{}, done: make(chan struct{})}
	d.cmd.Stderr = &d.log
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := start(at, d.cmd); err != nil {
		t.Fatalf("start the client driver: %v", err)
	}
	go d.read(out)
	t.Cleanup(func() {
		if t.Failed() {
			d.t = t
			d.report()
			t.Logf("client log, last lines:\n%s", d.log.String())
		}
		d.in.Close()
		select {
		case <-d.done:
		case <-time.After(20 * time.Second):
			t.Error("the client driver did not end by itself")
			d.cmd.Process.Kill()
			<-d.done
		}
		d.uploads.Wait()
		if err := d.cmd.Wait(); err != nil {
			t.Errorf("client driver: %v", err)
		}
	})
	return d
}

// report logs what each client was doing: the first thing to read after a failure.
func (d *Driver) report() {
	d.mu.Lock()
	var clients []*Client
	for _, c := range d.clients {
		clients = append(clients, c)
	}
	d.mu.Unlock()
	for _, c := range clients {
		var status, stats json.RawMessage
		if err := d.call("status", map[string]any{"client": c.name}, &status, 5*time.Second); err != nil {
			d.t.Logf("client %s: %v", c.name, err)
			continue
		}
		if err := d.call("stats", map[string]any{"client": c.name}, &stats, 5*time.Second); err != nil {
			d.t.Logf("client %s: %v", c.name, err)
			continue
		}
		d.t.Logf("client %s\n%s\n%s", c.name, status, stats)
	}
}

func (d *Driver) read(out io.Reader) {
	defer close(d.done)
	scanner := bufio.NewScanner(out)
	scanner.Buffer(nil, 256<<20)
	for scanner.Scan() {
		var m message
		if err := json.Unmarshal(scanner.Bytes(), &m); err != nil {
			d.fail(fmt.Errorf("client driver said %q: %w", scanner.Bytes(), err))
			return
		}
		switch {
		case m.Event == "upload":
			d.uploads.Go(func() { d.upload(m) })
		case m.Event != "":
		default:
			d.mu.Lock()
			ch := d.waiting[m.ID]
			delete(d.waiting, m.ID)
			d.mu.Unlock()
			a := answer{result: m.Result}
			if !m.OK {
				a.err = fmt.Errorf("%s", m.Error)
			}
			if ch != nil {
				ch <- a
			}
		}
	}
	d.fail(fmt.Errorf("the client driver's output ended: %v", scanner.Err()))
}

// fail ends every call that waits.
func (d *Driver) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = err
	for id, ch := range d.waiting {
		ch <- answer{err: err}
		delete(d.waiting, id)
	}
}

func (d *Driver) upload(m message) {
	d.mu.Lock()
	c := d.clients[m.Client]
	d.mu.Unlock()
	request := map[string]any{"upload": m.Upload}
	var err error
	switch {
	case c != nil && c.options.UploadCustom != nil:
		request["checkpoint"], err = c.options.UploadCustom(m.Crud)
	case c != nil && c.options.Upload != nil:
		err = c.options.Upload(m.Crud)
	default:
		err = errors.New("the test has no upload function")
	}
	if err != nil {
		request["error"] = err.Error()
	}
	if err := d.call("uploaded", request, nil, 20*time.Second); err != nil {
		d.log.printf("answer an upload: %v\n", err)
	}
}

// call sends one request and waits for its answer.
func (d *Driver) call(op string, request map[string]any, result any, within time.Duration) error {
	ch := make(chan answer, 1)
	d.mu.Lock()
	if d.ended != nil {
		d.mu.Unlock()
		return fmt.Errorf("%s: %w", op, d.ended)
	}
	d.next++
	id := d.next
	d.waiting[id] = ch
	body := map[string]any{"id": id, "op": op}
	for k, v := range request {
		body[k] = v
	}
	line, err := json.Marshal(body)
	if err == nil {
		_, err = d.in.Write(append(line, '\n'))
	}
	d.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case a := <-ch:
		if a.err != nil {
			return fmt.Errorf("%s: %w", op, a.err)
		}
		if result != nil {
			if err := json.Unmarshal(a.result, result); err != nil {
				return fmt.Errorf("%s: %w", op, err)
			}
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("%s: no answer within %s", op, within)
	}
}

// ClientOptions are of one client database.
type ClientOptions struct {
	Name      string
	Endpoint  string
	Token     string
	Transport string // http (default) or websocket
	// Schema is the client's tables: name → column → text, integer or real.
	Schema map[string]map[string]string
	Params map[string]any
	// NoDefaults leaves out the streams with auto_subscribe.
	NoDefaults bool
	// CheckpointMode is legacy (default) or requests.
	CheckpointMode string
	// Upload is the app's backend: it writes one local transaction to the source.
	Upload func([]Crud) error
	// UploadCustom is Upload where write checkpoints are custom: it returns the
	// one that it has written with the transaction.
	UploadCustom func([]Crud) (string, error)
	// Web is for tabs of a browser only.
	Web Web
}

// Client is one database of the official SDK.
type Client struct {
	driver  *Driver
	name    string
	options ClientOptions
	ID      string // the client id that the SDK has chosen
}

// Open opens the client's database; it does not connect.
func (d *Driver) Open(o ClientOptions) *Client {
	d.t.Helper()
	c := &Client{driver: d, name: o.Name, options: o}
	var opened struct {
		ClientID string `json:"client_id"`
	}
	err := d.call("open", map[string]any{
		"client": o.Name, "path": filepath.Join(d.dir, o.Name+".sqlite"), "schema": o.Schema,
		"endpoint": o.Endpoint, "token": o.Token, "transport": orElse(o.Transport, "http"),
		"params": o.Params, "include_defaults": !o.NoDefaults,
		"checkpoint_mode": orElse(o.CheckpointMode, "legacy"), "retry_delay_ms": 200,
		"profile": orElse(o.Web.Profile, o.Name), "vfs": o.Web.VFS,
	}, &opened, 60*time.Second)
	if err != nil {
		d.t.Fatalf("client %s: %v", o.Name, err)
	}
	c.ID = opened.ClientID
	d.mu.Lock()
	d.clients[o.Name] = c
	d.mu.Unlock()
	return c
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (c *Client) call(op string, request map[string]any, result any, within time.Duration) {
	c.driver.t.Helper()
	if request == nil {
		request = map[string]any{}
	}
	request["client"] = c.name
	if err := c.driver.call(op, request, result, within); err != nil {
		c.driver.t.Fatalf("client %s: %v", c.name, err)
	}
}

// Connect starts syncing; the SDK retries by itself until Disconnect.
func (c *Client) Connect() { c.driver.t.Helper(); c.call("connect", nil, nil, 10*time.Second) }

// Disconnect stops syncing and keeps the data.
func (c *Client) Disconnect() { c.driver.t.Helper(); c.call("disconnect", nil, nil, 20*time.Second) }

// Close closes the database; Open with the same name opens it again.
func (c *Client) Close() {
	c.driver.t.Helper()
	c.call("close", nil, nil, 20*time.Second)
	c.driver.mu.Lock()
	delete(c.driver.clients, c.name)
	c.driver.mu.Unlock()
}

// SetToken gives the credentials that the SDK gets at its next attempt.
func (c *Client) SetToken(token string) {
	c.driver.t.Helper()
	c.call("set", map[string]any{"options": map[string]any{"token": token}}, nil, 10*time.Second)
}

// FirstSync waits until a whole checkpoint was applied once.
func (c *Client) FirstSync(within time.Duration) {
	c.driver.t.Helper()
	c.call("first_sync", map[string]any{"timeout_ms": within.Milliseconds()}, nil, within+10*time.Second)
}

// FirstSyncOf waits until the buckets of a priority and of the more urgent ones were applied.
func (c *Client) FirstSyncOf(priority int, within time.Duration) {
	c.driver.t.Helper()
	c.call("first_sync", map[string]any{"timeout_ms": within.Milliseconds(), "priority": priority}, nil, within+10*time.Second)
}

// Execute runs local statements as one transaction, which is one upload.
func (c *Client) Execute(statements ...Statement) {
	c.driver.t.Helper()
	var list [][]any
	for _, s := range statements {
		list = append(list, []any{s.SQL, s.Args})
	}
	c.call("execute", map[string]any{"statements": list}, nil, 20*time.Second)
}

// Statement is SQL for a client's database.
type Statement struct {
	SQL  string
	Args []any
}

// Subscribe subscribes to a sync stream and waits for its first sync if within is not 0.
func (c *Client) Subscribe(as, stream string, params map[string]any, within time.Duration) {
	c.driver.t.Helper()
	c.call("subscribe", map[string]any{
		"as": as, "stream": stream, "params": params, "timeout_ms": within.Milliseconds(),
	}, nil, within+10*time.Second)
}

// Unsubscribe drops a subscription; the SDK keeps the data until its time to live.
func (c *Client) Unsubscribe(as string) {
	c.driver.t.Helper()
	c.call("unsubscribe", map[string]any{"as": as}, nil, 10*time.Second)
}

// Subscription says how long and how urgently a stream is wanted.
type Subscription struct {
	As, Stream string
	Params     map[string]any
	TTL        *time.Duration // how long the data stays after Unsubscribe; nil is the SDK's default
	Priority   *int           // nil is the stream's own
}

// SubscribeWith is Subscribe with all options.
func (c *Client) SubscribeWith(s Subscription, within time.Duration) {
	c.driver.t.Helper()
	request := map[string]any{"as": s.As, "stream": s.Stream, "params": s.Params, "timeout_ms": within.Milliseconds(), "priority": s.Priority}
	if s.TTL != nil {
		request["ttl"] = s.TTL.Seconds()
	}
	c.call("subscribe", request, nil, within+10*time.Second)
}

// RequestCheckpoint makes a checkpoint request and waits until it is applied.
func (c *Client) RequestCheckpoint(within time.Duration) {
	c.driver.t.Helper()
	c.call("request_checkpoint", map[string]any{"timeout_ms": within.Milliseconds()}, nil, within+10*time.Second)
}

// Rows returns a query's result like Postgres.Rows.
func (c *Client) Rows(sql string, args ...any) ([]string, error) {
	if args == nil {
		args = []any{}
	}
	var result struct {
		Columns []string `json:"columns"`
		Rows    [][]any  `json:"rows"`
	}
	err := c.driver.call("raw_query", map[string]any{"client": c.name, "sql": sql, "args": args}, &result, 30*time.Second)
	if err != nil {
		return nil, fmt.Errorf("client %s: %w", c.name, err)
	}
	var lines []string
	for _, row := range result.Rows {
		fields := make([]string, len(row))
		for i, v := range row {
			switch v := v.(type) {
			case nil:
				fields[i] = "NULL"
			case string:
				fields[i] = v
			default:
				text, err := json.Marshal(v)
				if err != nil {
					return nil, err
				}
				fields[i] = string(text)
			}
		}
		lines = append(lines, strings.Join(fields, "|"))
	}
	return lines, nil
}

// Check lets the client's process read a query over and over, which must give no
// row: what it gives otherwise was seen by an app.
func (c *Client) Check(as, sql string) {
	c.driver.t.Helper()
	c.call("check", map[string]any{"as": as, "sql": sql}, nil, 10*time.Second)
}

// CheckStop ends a Check and tells how often it read, and some of the rows.
func (c *Client) CheckStop(as string) (reads int, violations []string) {
	c.driver.t.Helper()
	var result struct {
		Reads      int      `json:"reads"`
		Violations []string `json:"violations"`
	}
	c.call("check_stop", map[string]any{"as": as}, &result, 30*time.Second)
	return result.Reads, result.Violations
}

// Status is what the SDK shows to an app.
type Status struct {
	Connected     bool           `json:"connected"`
	Connecting    bool           `json:"connecting"`
	HasSynced     bool           `json:"has_synced"`
	LastSyncedAt  int64          `json:"last_synced_at_ms"`
	DownloadError string         `json:"download_error"`
	UploadError   string         `json:"upload_error"`
	Streams       []StreamStatus `json:"streams"`
}

// StreamStatus is what the SDK shows of one stream: of a default one, or of a subscription.
type StreamStatus struct {
	Name       string         `json:"name"`
	Parameters map[string]any `json:"parameters"`
	Active     bool           `json:"active"`
	IsDefault  bool           `json:"is_default"`
	HasSynced  bool           `json:"has_synced"`
	// The rest only from a browser.
	Explicit   bool  `json:"explicit"`
	ExpiresAt  int64 `json:"expires_at_ms"`
	Priority   *int  `json:"priority"`
	Downloaded int   `json:"downloaded"`
	Total      int   `json:"total"`
}

// Status asks the SDK.
func (c *Client) Status() Status {
	c.driver.t.Helper()
	var s Status
	c.call("status", nil, &s, 10*time.Second)
	return s
}

// Stats counts what the service has sent to this client since it was opened.
type Stats struct {
	Connects       int `json:"connects"`
	ResumedBuckets []struct {
		Name  string `json:"name"`
		After string `json:"after"`
	} `json:"resumed_buckets"`
	Lines            map[string]int `json:"lines"`
	Ops              map[string]int `json:"ops"`
	OpsTotal         int            `json:"ops_total"`
	Bytes            int            `json:"bytes"`
	LastOpID         string         `json:"last_op_id"`
	LastComplete     int64          `json:"last_complete_ms"`
	WriteCheckpoint  string         `json:"write_checkpoint"`
	Buckets          []Bucket       `json:"buckets"`
	ChecksumFailures []string       `json:"checksum_failures"`
	OutOfOrder       []string       `json:"out_of_order"`
	// CredentialFetches is how often the SDK asked the app for a token; from a browser only.
	CredentialFetches int `json:"credential_fetches"`
}

// Bucket is a bucket of the client's current checkpoint.
type Bucket struct {
	Bucket   string `json:"bucket"`
	Count    int    `json:"count"`
	Checksum uint32 `json:"checksum"`
	Priority int    `json:"priority"`
}

// Stats asks the driver.
func (c *Client) Stats() Stats {
	c.driver.t.Helper()
	var s Stats
	c.call("stats", nil, &s, 10*time.Second)
	return s
}

// Sound fails the test if the client has seen a wrong checksum or ops out of order.
func (c *Client) Sound() {
	c.driver.t.Helper()
	s := c.Stats()
	if len(s.ChecksumFailures) > 0 {
		c.driver.t.Errorf("client %s: checksum failures: %v", c.name, s.ChecksumFailures)
	}
	if len(s.OutOfOrder) > 0 {
		c.driver.t.Errorf("client %s: INV-24: ops out of order: %v", c.name, s.OutOfOrder)
	}
}
