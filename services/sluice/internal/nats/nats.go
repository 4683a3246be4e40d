// Package nats runs a NATS server with JetStream inside the process.
package nats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/sluicesync/sluice/libs/kit/certificate"
)

const (
	// maxPayload is the largest message. A batch of many rows is far smaller; a
	// batch of one large row is what needs this.
	maxPayload = 64 << 20
	// maxStore bounds JetStream's disk; the stream of changes has its own bound
	// below it.
	maxStore   = 64 << 30
	maxMemory  = 256 << 20
	startLimit = 20 * time.Second
	tlsTimeout = 5 * time.Second
)

// Start starts a server whose store is in the folder nats of data. address is
// where it listens, as a nats:// URL; "" = only for this process. With shown (nil
// = no TLS) each client needs a certificate, and may do what its role may.
//
// The store is not synced at each message: what a power cut takes from it, the
// replicator reads from the source again.
func Start(data, address string, shown *certificate.Keeper, log *slog.Logger) (*server.Server, error) {
	dir, err := filepath.Abs(filepath.Join(data, "nats"))
	if err != nil {
		return nil, fmt.Errorf("find folder %s: %w", data, err)
	}
	o := &server.Options{
		ServerName: "sluice", JetStream: true, StoreDir: dir, MaxPayload: maxPayload,
		JetStreamMaxStore: maxStore, JetStreamMaxMemory: maxMemory,
		NoSigs: true, DontListen: address == "",
		// A client that vanished is forgotten, and what it was sent is delivered
		// elsewhere.
		PingInterval: 5 * time.Second, MaxPingsOut: 2,
	}
	if shown != nil {
		// The server takes the user's name from the certificate.
		o.TLSConfig, o.TLSVerify, o.TLSMap, o.TLSTimeout = shown.Server(), true, true, tlsTimeout.Seconds()
		o.Users = users(shown.Identities())
	}
	if address != "" {
		u, err := url.Parse(address)
		if err != nil || u.Hostname() == "" {
			return nil, fmt.Errorf("sluice.nats.url %q is not nats://host:port", address)
		}
		o.Host, o.Port = u.Hostname(), server.DEFAULT_PORT
		if u.Port() != "" {
			if o.Port, err = strconv.Atoi(u.Port()); err != nil {
				return nil, fmt.Errorf("sluice.nats.url: port: %w", err)
			}
		}
		// The server itself only logs that it cannot listen.
		l, err := net.Listen("tcp", net.JoinHostPort(o.Host, strconv.Itoa(o.Port)))
		if err != nil {
			return nil, fmt.Errorf("listen for NATS: %w", err)
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("listen for NATS: %w", err)
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("start NATS: %w", err)
	}
	l := &logger{log: log}
	s.SetLoggerV2(l, false, false, false)
	s.Start()
	// A server that cannot start only logs that.
	if why := l.fatal.Load(); why != nil {
		Stop(s)
		return nil, fmt.Errorf("start NATS on folder %s: %s", dir, *why)
	}
	if !s.ReadyForConnections(startLimit) {
		Stop(s)
		return nil, errors.New("start NATS: it is not ready in time")
	}
	return s, nil
}

// Stop stops s and waits until it has.
func Stop(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

// Run runs a server, as Start starts it, until ctx ends.
func Run(ctx context.Context, data, address string, shown *certificate.Keeper, log *slog.Logger) error {
	s, err := Start(data, address, shown, log)
	if err != nil {
		return err
	}
	log.Info("NATS is ready", "address", s.ClientURL())
	<-ctx.Done()
	Stop(s)
	return nil
}

// logger passes on what the server says that an operator must know.
type logger struct {
	log   *slog.Logger
	fatal atomic.Pointer[string] // why the server cannot start
}

func (l *logger) say(level slog.Level, format string, v []any) {
	l.log.Log(context.Background(), level, "NATS: "+fmt.Sprintf(format, v...))
}

func (l *logger) Noticef(format string, v ...any) { l.say(slog.LevelDebug, format, v) }
func (l *logger) Debugf(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }
func (l *logger) Tracef(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }
func (l *logger) Errorf(format string, v ...any)  { l.say(slog.LevelError, format, v) }

func (l *logger) Fatalf(format string, v ...any) {
	why := fmt.Sprintf(format, v...)
	l.fatal.Store(&why)
	l.say(slog.LevelError, format, v)
}

func (l *logger) Warnf(format string, v ...any) {
	if strings.HasPrefix(format, "Maximum payloads") {
		return // maxPayload is meant as it is
	}
	l.say(slog.LevelWarn, format, v)
}
