// Package stream is the pipeline's use of NATS: the JetStream stream of change
// batches, its one consumer, and the subjects of checkpoint notices.
//
// JetStream is a buffer, not the truth (D3, D4): whatever it loses, the
// replicator reads again, and whatever it delivers twice, the ledger drops.
package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sluicesync/sluice/libs/kit/service"
)

const (
	// Name of the stream of change batches.
	Name = "SLUICE_CHANGES"
	// Evaluators is the durable consumer that all evaluators share.
	Evaluators = "evaluators"
	// AllCheckpoints matches the notices of all replication streams.
	AllCheckpoints = "sluice.checkpoints.*"
	// AckWait is how long a message may be held without a ping.
	AckWait = 3 * time.Second

	allChanges = "sluice.changes.*"
	// DefaultMaxBytes bounds the stream unless Options say otherwise: at this
	// size publishers are refused and wait, so that a stalled pipeline fills
	// a disk no further.
	DefaultMaxBytes = 1 << 30
	// duplicates is how long message ids are remembered. A redelivered or
	// republished batch is recognised by the ledger anyway; this saves work.
	duplicates = 2 * time.Minute
	// maxPending is how many messages may be held by all evaluators together.
	maxPending = 4096
)

// Options of the stream of change batches.
type Options struct {
	MaxBytes int64 // 0 = DefaultMaxBytes
	Storage  jetstream.StorageType
	Replicas int // 0 = 1
}

// ChangesSubject is where the batches of a replication stream are published.
func ChangesSubject[ID ~int64](id ID) string {
	return "sluice.changes." + strconv.FormatInt(int64(id), 10)
}

// CheckpointSubject is where the notices of a replication stream are published.
func CheckpointSubject[ID ~int64](id ID) string {
	return "sluice.checkpoints." + strconv.FormatInt(int64(id), 10)
}

// Connect connects to NATS and stays connected: a server that is away, now or
// later, is tried again for ever. A url is one or several nats:// URLs,
// separated by commas.
func Connect(url string, env service.Env, opts ...nats.Option) (*nats.Conn, error) {
	if env.TLS != nil {
		opts = append(opts, secured(env.TLS), nats.CustomInboxPrefix(inbox(env.TLS.Role())))
	}
	nc, err := nats.Connect(url, append([]nats.Option{
		nats.Name("sluice/" + env.Instance),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(100 * time.Millisecond),
		nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond),
		nats.Timeout(2 * time.Second),
		nats.PingInterval(2 * time.Second),
		nats.MaxPingsOutstanding(2),
		// A publish while disconnected fails instead of waiting in memory: the
		// caller holds the batch and knows what to do.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				env.Log.Warn("NATS connection lost", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { env.Log.Info("NATS connected") }),
		nats.ReconnectErrHandler(failures(env.Log)),
		// A server that refuses a certificate or a password may be told better.
		nats.IgnoreAuthErrorAbort(),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subject := ""
			if s != nil {
				subject = s.Subject
			}
			env.Log.Warn("NATS error", "subject", subject, "error", err)
		}),
	}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	return nc, nil
}

// failures logs why there is no connection, once as long as the reason is the same.
func failures(log *slog.Logger) nats.ConnErrHandler {
	last := "" // NATS calls its handlers one after another
	return func(_ *nats.Conn, err error) {
		if why := err.Error(); why != last {
			last = why
			log.Warn("NATS cannot be reached; trying again", "error", err)
		}
	}
}

// Changes creates the stream of change batches or brings it up to date. Whoever
// needs it calls it; a wiped NATS gets it back this way.
func Changes(ctx context.Context, js jetstream.JetStream, o Options) (jetstream.Stream, error) {
	c := jetstream.StreamConfig{
		Name:        Name,
		Description: "change batches on their way from the replicator to the evaluators",
		Subjects:    []string{allChanges},
		Retention:   jetstream.WorkQueuePolicy,
		Discard:     jetstream.DiscardNew,
		MaxBytes:    o.MaxBytes,
		MaxMsgs:     -1,
		Storage:     o.Storage,
		Replicas:    max(o.Replicas, 1),
		Duplicates:  duplicates,
		AllowDirect: true,
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	s, err := js.CreateStream(ctx, c)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		s, err = js.UpdateStream(ctx, c)
	}
	if err != nil {
		return nil, fmt.Errorf("create JetStream stream %s: %w", Name, err)
	}
	return s, nil
}

// Consumer creates the evaluators' consumer or brings it up to date. The stream
// must exist.
func Consumer(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	c, err := js.CreateOrUpdateConsumer(ctx, Name, jetstream.ConsumerConfig{
		Durable:       Evaluators,
		AckPolicy:     jetstream.AckExplicitPolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckWait:       AckWait,
		MaxDeliver:    -1,
		MaxAckPending: maxPending,
	})
	if err != nil {
		return nil, fmt.Errorf("create JetStream consumer %s: %w", Evaluators, err)
	}
	return c, nil
}
