// Package process is what the main functions of the services have in common:
// flags, config, log, private port, signals. A main wires connections and calls
// Run; everything else is here.
package process

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/serve"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/telemetry"
)

// Service is one service as a process.
type Service struct {
	// Name is the binary's, and the service's role.
	Name string
	// MetricsPort chooses the private port's key; 0 = telemetry.prometheus_port.
	MetricsPort func(*config.Sluice) int
	// Run wires the service and runs it until ctx ends.
	Run func(ctx context.Context, f *config.File, env service.Env) error
}

// Main runs s with the process's arguments and returns its exit code: 0 after
// SIGTERM or SIGINT, 1 after an error. A second signal kills the process.
func (s Service) Main() int {
	err := s.run(context.Background(), os.Args[1:], os.Stderr)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 2
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", s.Name, errs.Cause(err))
	return 1
}

func (s Service) run(ctx context.Context, args []string, log io.Writer) error {
	var o config.Options
	flags := flag.NewFlagSet(s.Name, flag.ContinueOnError)
	flags.SetOutput(log)
	for _, name := range []string{"c", "config", "config-path"} {
		flags.StringVar(&o.Path, name, "", "service config, a `file`; default "+config.DefaultPath)
	}
	for _, name := range []string{"c64", "config-base64"} {
		flags.StringVar(&o.Base64, name, "", "service config as base64 `text`")
	}
	for _, name := range []string{"sync64", "sync-base64"} {
		flags.StringVar(&o.SyncBase64, name, "", "sync config as base64 `text`")
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	f, err := config.Load(o)
	if err != nil {
		return err
	}
	ctx, stop := Signals(ctx)
	defer stop()
	l := telemetry.Logger(log, f.Logging, telemetry.Format())
	LogWarnings(l, f)
	shown, err := certificate.ForService(f.Sluice.TLS, certificate.Role(s.Name), l)
	if err != nil {
		return err
	}
	registry := telemetry.Registry()
	env := telemetry.Env(s.Name, telemetry.Instance(), shown, l, registry)
	export, err := telemetry.NewExport(ctx, s.Name, env.Instance, f, registry, l)
	if err != nil {
		return err
	}
	defer CloseExport(ctx, export, l)
	env.Trace = export.Tracer(s.Name)
	lis, err := s.listen(f, l)
	if err != nil {
		return err
	}
	return Run(ctx, lis, f.Probes, registry, l, map[string]*service.Health{s.Name: env.Health}, func(ctx context.Context) error {
		return WithTLS(ctx, env.TLS, func(ctx context.Context) error { return s.Run(ctx, f, env) })
	})
}

// WithTLS runs main while shown (nil = no TLS) takes up new certificates.
func WithTLS(ctx context.Context, shown *certificate.Keeper, main func(context.Context) error) error {
	if shown == nil {
		return main(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return shown.Run(ctx) })
	eg.Go(func() error {
		defer cancel()
		return main(ctx)
	})
	return eg.Wait()
}

// listen listens on the private port. telemetry.prometheus_port is one port for
// all services, each in a container of its own; on one machine the first gets
// it.
func (s Service) listen(f *config.File, l *slog.Logger) (net.Listener, error) {
	if port := s.MetricsPort(&f.Sluice); port != 0 {
		return serve.Listen(port)
	}
	lis, err := serve.Listen(f.Telemetry.PrometheusPort)
	if errors.Is(err, syscall.EADDRINUSE) {
		l.Warn("telemetry.prometheus_port is taken: set this service's metrics_port to have its metrics too", "port", f.Telemetry.PrometheusPort)
		return nil, nil
	}
	return lis, err
}

// Signals returns a context that ends at SIGTERM, SIGINT or SIGUSR2. From then on they
// have their usual effect again.
func Signals(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, ending...)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// CloseExport pushes what is left, or logs why not.
func CloseExport(ctx context.Context, e *telemetry.Export, l *slog.Logger) {
	if err := e.Close(ctx); err != nil {
		l.Warn("telemetry is lost", "error", err)
	}
}

// LogWarnings logs what is odd about a config.
func LogWarnings(l *slog.Logger, f *config.File) {
	for _, w := range f.Warnings {
		l.Warn("config", "file", f.Name, "line", w.Line, "column", w.Column, "key", w.Key, "problem", w.Message)
	}
}

// probeFiles is where probe files are, below the working directory.
const probeFiles = ".probes"

// Run runs main beside the private server on lis (nil = none), which it owns,
// until main ends or ctx does. Probe files are kept if probes says so: unlike
// the reference not by default, since a process that writes into whatever folder
// it was started in surprises people.
func Run(ctx context.Context, lis net.Listener, probes *config.Probes, g prometheus.Gatherer, log *slog.Logger, healths map[string]*service.Health, main func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	eg, ctx := errgroup.WithContext(ctx)
	var level http.Handler // nil = the log is not one of ours
	if l := telemetry.LevelOf(log); l != nil {
		level = l
	}
	eg.Go(func() error { return serve.Serve(ctx, lis, serve.Handler(g, healths, level)) })
	if probes != nil && (probes.Filesystem || probes.Legacy) {
		eg.Go(func() error { return serve.Files(ctx, probeFiles, healths) })
	}
	eg.Go(func() error {
		defer cancel()
		return main(ctx)
	})
	return eg.Wait()
}
