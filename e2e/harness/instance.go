package harness

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Mode is how the services run.
type Mode string

const (
	// Dev is `sluice dev`: all five and NATS in one process.
	Dev Mode = "dev"
	// Suite is scripts/suite: each service and NATS a process of its own.
	Suite Mode = "suite"
)

// Names of the processes in Suite mode; those that may have several carry a number.
const (
	NATS        = "nats"
	BucketStore = "bucket-store" // more of them, Options.Stores, are bucket-store-2 and so on
	Compactor   = "compactor"
	Replicator  = "replicator"
	Replicator2 = "replicator-2" // a standby; Start starts it
	Evaluator1  = "rules-evaluator-1"
	Evaluator2  = "rules-evaluator-2"
	Gateway1    = "sync-gateway-1"
	Gateway2    = "sync-gateway-2"
	// All is the one process of Dev mode.
	All = "sluice"
	// Test is the test, as an Option's Place is asked for it.
	Test = "test"
)

// Options are of one instance.
type Options struct {
	Mode Mode
	// Replicas of rules-evaluator and sync-gateway in Suite mode; 0 = 2.
	Replicas int
	// Stores is how many bucket-stores there are in Suite mode; 0 = 1. More need
	// Storage "postgresql".
	Stores int
	// SyncConfig is the sync config's text.
	SyncConfig string
	// TLS between the services, in Suite mode, with certificates of `sluice
	// certificates` in Certificates.
	TLS bool
	// CompactOnDemand turns the compactor's schedule off.
	CompactOnDemand bool
	// Storage is that of the config's storage.type: "embedded", "postgresql", a
	// database of the source's server, or "mongodb", the server that
	// SLUICE_TEST_MONGODB_URI names or a fake; "" = what SLUICE_E2E_STORAGE says.
	Storage string
	// Extra is appended to the `sluice:` section of the config, indented by two.
	Extra string
	// Source is where the source is for the replicator; "" = where it is.
	Source string
	// Only are the processes that run in Suite mode; nil = all.
	Only []string
	// Place says where a process runs, and, for Test, from where the test looks at
	// them; nil = all in the test's own network. Then there is no balancer.
	Place func(process string) Place
	// Env has variables for a process in Suite mode; nil = none.
	Env func(in *Instance, process string) []string
}

// Instance is one running Sluice.
type Instance struct {
	t        testing.TB
	mode     Mode
	replicas int
	bin      string
	dir      string
	data     string
	config   string
	storage  string // its section of the config
	balancer *Balancer
	dev      *devProcess
	metrics  map[string]int    // process → metrics port
	gateways []string          // addresses of the gateways
	inner    map[string]string // process → address for other processes
	only     []string
	vars     func(in *Instance, process string) []string
	place    func(process string) Place
	client   http.Client // of private ports
}

// devProcess is `sluice dev`; done is closed when it has ended.
type devProcess struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // written before done is closed
}

// StartInstance starts Sluice on a source and returns once it takes requests.
func StartInstance(t testing.TB, dir string, p *Postgres, o Options) *Instance {
	t.Helper()
	in := &Instance{
		t: t, mode: o.Mode, replicas: o.Replicas, bin: Binaries(t), dir: dir,
		data: filepath.Join(dir, "data"), config: filepath.Join(dir, "powersync.yaml"),
		metrics: map[string]int{}, inner: map[string]string{}, only: o.Only, vars: o.Env, place: o.Place,
	}
	if in.place == nil {
		in.place = func(string) Place { return nil }
	}
	in.client = http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: Dial(in.place(Test)), DisableKeepAlives: true}}
	if in.replicas == 0 {
		in.replicas = 2
	}
	if in.mode == Dev {
		in.replicas = 1
	}
	if o.Storage == "" {
		o.Storage = cmp.Or(os.Getenv("SLUICE_E2E_STORAGE"), "embedded")
	}
	if o.Storage == "postgresql" {
		p.Exec("CREATE DATABASE " + storageDatabase)
	}
	in.writeConfig(p, o)
	t.Cleanup(in.end)
	switch {
	case in.mode == Dev:
		in.startDev()
	case in.only != nil:
		for _, name := range in.only {
			in.Start(name)
		}
	default:
		in.suite("up")
	}
	if in.only != nil {
		in.gateways = slices.DeleteFunc(in.gateways, func(address string) bool {
			return !slices.ContainsFunc(in.only, func(name string) bool { return in.inner[name] == address })
		})
	}
	if o.Place == nil {
		in.balancer = StartBalancer(t, in.gateways...)
	}
	for _, g := range in.gateways {
		Eventually(t, 60*time.Second, "gateway "+g+" accepts connections", func() error {
			if in.dev != nil {
				select {
				case <-in.dev.done:
					t.Fatalf("sluice dev has ended: %v", in.dev.err)
				default:
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			conn, err := Dial(in.place(Test))(ctx, "tcp", g)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	return in
}

// Use is like Driver.Use.
func (in *Instance) Use(t testing.TB) { use(&in.t, t) }

// URL is where clients connect; it balances over the gateways, or is the first one's
// where there is no balancer.
func (in *Instance) URL() string {
	if in.balancer == nil {
		return in.URLs()[0]
	}
	return in.balancer.URL()
}

// Certificates is the folder of the certificates of the services.
func (in *Instance) Certificates() string { return filepath.Join(in.dir, "certificates") }

// Setting is what the services read from the config for a key.
func (in *Instance) Setting(key string) string {
	in.t.Helper()
	out, err := in.CLI("config", "--get", key)
	if err != nil {
		in.t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(out)
}

// Log is what a process has written so far.
func (in *Instance) Log(name string) string {
	in.t.Helper()
	text, err := os.ReadFile(filepath.Join(in.data, "log", name+".log"))
	if err != nil {
		in.t.Fatal(err)
	}
	return string(text)
}

// URLs returns the gateways themselves, for whoever must not go through the balancer.
func (in *Instance) URLs() []string {
	var urls []string
	for _, g := range in.gateways {
		urls = append(urls, "http://"+g)
	}
	return urls
}

// Balance makes clients that connect from now on go to these gateways, as a load
// balancer does that has been told; they must be started and ready.
func (in *Instance) Balance(gateways ...string) {
	in.t.Helper()
	var addresses []string
	for _, name := range gateways {
		Eventually(in.t, 30*time.Second, name+" is ready", func() error {
			ready, err := in.Ready(name)
			if err == nil {
				err = Equal(ready, true)
			}
			return err
		})
		addresses = append(addresses, in.inner[name])
	}
	in.balancer.Use(addresses...)
}

// Address is where others find NATS, bucket-store, the replicator, the compactor or a gateway.
func (in *Instance) Address(process string) string { return in.inner[process] }

// PID returns the process of a service.
func (in *Instance) PID(name string) int { in.t.Helper(); return in.pid(name) }

// GatewayPID returns the (first) process that serves clients.
func (in *Instance) GatewayPID() int { in.t.Helper(); return in.pid(Gateway1) }

// Cut breaks all client connections.
func (in *Instance) Cut() { in.balancer.Cut() }

// Unreachable makes clients lose the service, or find it again.
func (in *Instance) Unreachable(lost bool) { in.balancer.SetDown(lost) }

func (in *Instance) writeConfig(p *Postgres, o Options) {
	in.t.Helper()
	if err := os.MkdirAll(in.data, 0o755); err != nil {
		in.t.Fatal(err)
	}
	syncFile := filepath.Join(in.dir, "sync.yaml")
	if err := os.WriteFile(syncFile, []byte(o.SyncConfig), 0o644); err != nil {
		in.t.Fatal(err)
	}
	text := configText(in, p, o) + o.Extra
	if o.TLS {
		out, err := in.CLI("certificates", in.Certificates())
		if err != nil {
			in.t.Fatalf("%v\n%s", err, out)
		}
		_, section, ok := strings.Cut(out, "sluice:\n")
		if !ok {
			in.t.Fatalf("sluice certificates printed no config:\n%s", out)
		}
		text += section
	}
	if err := os.WriteFile(in.config, []byte(text), 0o644); err != nil {
		in.t.Fatal(err)
	}
}

// Deploy makes the running instance use another sync config and waits until it
// is active.
func (in *Instance) Deploy(text string) {
	in.t.Helper()
	if out, err := in.TryDeploy(text); err != nil {
		in.t.Fatalf("%v\n%s", err, out)
	}
}

// TryDeploy is Deploy for a config that may be refused; it returns what the
// command printed.
func (in *Instance) TryDeploy(text string) (string, error) {
	in.t.Helper()
	return in.CLI("deploy", in.File("deploy.yaml", text))
}

// File writes a file for a command, and returns its path.
func (in *Instance) File(name, text string) string {
	in.t.Helper()
	file := filepath.Join(in.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		in.t.Fatal(err)
	}
	return file
}

// CLI runs bin/sluice with the instance's config.
func (in *Instance) CLI(args ...string) (string, error) {
	in.t.Helper()
	cmd := exec.CommandContext(in.t.Context(), filepath.Join(in.bin, "sluice"), append(args, "--config", in.config)...)
	cmd.Env = append(in.env(), "SLUICE_DATA="+in.data)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := start(in.place(Test), cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("sluice %s: %w", strings.Join(args, " "), err)
	}
	return out.String(), err
}

func (in *Instance) env() []string {
	// A race is reported when it happens and fails the process's exit code too.
	return append(os.Environ(), "GORACE=halt_on_error=0 exitcode=66", "SLUICE_BIN="+in.bin)
}

func (in *Instance) startDev() {
	in.t.Helper()
	if err := os.MkdirAll(filepath.Join(in.data, "log"), 0o755); err != nil {
		in.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(in.data, "log", All+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		in.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(in.bin, "sluice"), "dev", "--config", in.config, "--data", in.data)
	cmd.Env = in.env()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C at the test must not reach it before the cleanup
	if err := start(in.place(All), cmd); err != nil {
		in.t.Fatal(err)
	}
	d := &devProcess{cmd: cmd, done: make(chan struct{})}
	go func() {
		d.err = cmd.Wait()
		close(d.done)
	}()
	in.dev = d
}

func (in *Instance) suite(args ...string) {
	in.t.Helper()
	env := in.env()
	var at Place
	if args[0] == "start" {
		at = in.place(args[1])
	}
	if in.vars != nil && args[0] == "start" {
		env = append(env, in.vars(in, args[1])...)
	}
	all := append(args, "--replicas", fmt.Sprint(in.replicas), "--config", in.config, "--data", in.data)
	if _, err := script(in.t, at, env, "suite", all...); err != nil {
		in.t.Fatal(err)
	}
}

func (in *Instance) pid(name string) int {
	in.t.Helper()
	if in.mode == Dev {
		return in.dev.cmd.Process.Pid
	}
	pid, err := in.pidOf(name)
	if err != nil {
		in.t.Fatalf("process %s: %v", name, err)
	}
	return pid
}

// Kill ends a process as a power cut does (SIGKILL) and waits until it is gone.
func (in *Instance) Kill(name string) {
	in.t.Helper()
	in.signalAndWait(name, syscall.SIGKILL, 10*time.Second)
}

// Stop ends a process politely; it may take 30 s.
func (in *Instance) Stop(name string) {
	in.t.Helper()
	in.signalAndWait(name, syscall.SIGTERM, 35*time.Second)
}

func (in *Instance) signalAndWait(name string, sig syscall.Signal, within time.Duration) {
	in.t.Helper()
	pid := in.pid(name)
	if err := syscall.Kill(pid, sig); err != nil {
		in.t.Fatalf("signal %s: %v", name, err)
	}
	waitDead(in.t, name, pid, within)
	if in.dev != nil {
		<-in.dev.done
		if sig == syscall.SIGTERM && in.dev.err != nil {
			in.t.Errorf("sluice dev did not end well on SIGTERM: %v", in.dev.err)
		}
	}
}

// Start starts a process that was killed or stopped, on the data it had.
func (in *Instance) Start(name string) {
	in.t.Helper()
	if in.mode == Dev {
		in.startDev()
		return
	}
	in.suite("start", name)
}

// Down stops every process politely, as scripts/suite does; Up starts them again.
func (in *Instance) Down() { in.t.Helper(); in.suite("down") }

// Up starts what is not running.
func (in *Instance) Up() { in.t.Helper(); in.suite("up") }

// Pause stops a process without its knowing (SIGSTOP); Resume lets it go on.
func (in *Instance) Pause(name string) { in.t.Helper(); in.signal(name, syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (in *Instance) Resume(name string) { in.t.Helper(); in.signal(name, syscall.SIGCONT) }

func (in *Instance) signal(name string, sig syscall.Signal) {
	in.t.Helper()
	if err := syscall.Kill(in.pid(name), sig); err != nil {
		in.t.Fatalf("signal %s: %v", name, err)
	}
}

// WipeNATS removes what JetStream has stored. NATS must be stopped.
func (in *Instance) WipeNATS() {
	in.t.Helper()
	if err := os.RemoveAll(filepath.Join(in.data, "nats")); err != nil {
		in.t.Fatal(err)
	}
}

// Running returns the names of the processes that run, of those ever started.
func (in *Instance) Running() []string {
	in.t.Helper()
	files, err := filepath.Glob(filepath.Join(in.data, "run", "*.pid"))
	if err != nil {
		in.t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".pid")
		if pid, err := in.pidOf(name); err == nil && alive(pid) {
			names = append(names, name)
		}
	}
	return names
}

// Metrics returns the text of a process's metrics.
func (in *Instance) Metrics(process string) (string, error) {
	body, _, err := in.private(process, "/metrics")
	return body, err
}

// Exemplars returns the traces that a process's histogram names, to whoever asks for
// OpenMetrics.
func (in *Instance) Exemplars(process, name string) (traces []string, err error) {
	body, _, err := in.privateAs(process, "/metrics", "application/openmetrics-text; version=1.0.0")
	for line := range strings.Lines(body) {
		if _, exemplar, ok := strings.Cut(line, ` # {trace_id="`); ok && strings.HasPrefix(line, name+"_bucket{") {
			id, _, _ := strings.Cut(exemplar, `"`)
			traces = append(traces, id)
		}
	}
	return traces, err
}

// Metric returns the sum of a metric's samples of one process.
func (in *Instance) Metric(process, name string) (float64, error) {
	samples, err := in.Samples(process, name)
	if err == nil && len(samples) == 0 {
		err = fmt.Errorf("process %s has no metric %s", process, name)
	}
	sum := 0.0
	for _, v := range samples {
		sum += v
	}
	return sum, err
}

// Samples returns a metric's samples of one process, by their labels as they are
// printed, without braces.
func (in *Instance) Samples(process, name string) (map[string]float64, error) {
	body, err := in.Metrics(process)
	if err != nil {
		return nil, err
	}
	samples := map[string]float64{}
	for line := range strings.Lines(body) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "{") {
			continue
		}
		end := strings.LastIndexByte(rest, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[end:]), 64)
		if err != nil {
			return nil, fmt.Errorf("metric %s: %w", name, err)
		}
		samples[strings.Trim(rest[:end], "{} ")] = v
	}
	return samples, nil
}

// Ready returns what the readiness probe of a process says.
func (in *Instance) Ready(process string) (bool, error) {
	_, status, err := in.private(process, "/probes/readiness")
	return status == http.StatusOK, err
}

// private asks the private port of a process.
func (in *Instance) private(process, path string) (body string, status int, err error) {
	return in.privateAs(process, path, "")
}

func (in *Instance) privateAs(process, path, accept string) (body string, status int, err error) {
	r, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://%s:%d%s", address(in.place(process)), in.metrics[process], path), nil)
	if err != nil {
		return "", 0, err
	}
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	resp, err := in.client.Do(r)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		return "", 0, err
	}
	return b.String(), resp.StatusCode, nil
}

// end stops everything and judges the logs.
func (in *Instance) end() {
	if in.mode == Dev {
		if in.dev != nil {
			syscall.Kill(in.dev.cmd.Process.Pid, syscall.SIGCONT)
			in.dev.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-in.dev.done:
			case <-time.After(40 * time.Second):
				in.t.Error("sluice dev did not end within 40 s of SIGTERM")
				in.dev.cmd.Process.Kill()
				<-in.dev.done
			}
		}
	} else if _, err := script(in.t, nil, in.env(), "suite", "down", "--config", in.config, "--data", in.data); err != nil {
		in.t.Error(err)
	}
	in.judgeLogs()
}

// judgeLogs fails the test for a secret, a data race or a panic in a log, and
// shows the logs of a failed test.
func (in *Instance) judgeLogs() {
	files, err := filepath.Glob(filepath.Join(in.data, "log", "*.log"))
	if err != nil {
		in.t.Error(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			in.t.Error(err)
			continue
		}
		for _, bad := range []struct{ what, text string }{
			{"D10: the admin token", AdminToken},
			{"D10: the signing key", encodedKey()},
			{"D10: a client's token", tokenHead()},
			{"D10: the password of the source", "not-checked"},
			{"D10: a private key", "PRIVATE KEY"},
			{"a data race", "WARNING: DATA RACE"},
			{"a panic", "\npanic: "},
			{"a panic", "\ngoroutine 1 ["},
		} {
			if i := bytes.Index(text, []byte(bad.text)); i >= 0 {
				in.t.Errorf("%s is in %s: …%s…", bad.what, filepath.Base(f), text[max(0, i-200):min(len(text), i+3000)])
			}
		}
		if in.t.Failed() {
			const shown = 3000
			in.t.Logf("last warnings of %s:\n%s\nand its end:\n%s", filepath.Base(f), warnings(text), text[max(0, len(text)-shown):])
		}
	}
}

// warnings returns the last lines of a log that are more than news.
func warnings(log []byte) string {
	var lines []string
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "WARN") || strings.Contains(line, "ERROR") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-25):], "")
}
