// Package doctor looks at everything that an instance needs, without changing
// any of it, and says what is wrong and which command mends it.
//
// Invariants:
//
//   - Every problem has a fix to paste, or says that there is none to give
//     (TestSource, TestPath).
//   - D10: no report has a secret (TestSource).
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	bucketstore "github.com/sluicesync/sluice/services/bucket-store"
	"github.com/sluicesync/sluice/services/replicator"
	gateway "github.com/sluicesync/sluice/services/sync-gateway"
)

// State is what came out of a check.
type State string

const (
	OK      State = "ok"
	Warning State = "warning" // works, but look at it
	Failed  State = "failed"
	Skipped State = "skipped"
)

// Result is what a check found.
type Result struct {
	Check  string   `json:"check"`
	State  State    `json:"state"`
	Detail string   `json:"detail"`
	Fixes  []string `json:"fixes"` // commands to paste
}

func result(check string, s State, detail string, fixes ...string) Result {
	return Result{check, s, detail, append([]string{}, fixes...)}
}

// checkTime bounds one check.
const checkTime = 15 * time.Second

// Source looks at the source database and at those of its tables that are
// wanted.
func Source(ctx context.Context, f *config.File, tables []model.TablePattern) []Result {
	cfg, err := replicator.FromFile(f)
	if err != nil {
		return []Result{result("source", Failed, errs.Cause(err))}
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	found, err := replicator.Inspect(ctx, cfg, tables, slog.New(slog.DiscardHandler))
	if err != nil {
		p := cfg.Connection.Postgres
		return []Result{result("source", Failed, "cannot be reached: "+errs.Cause(err),
			fmt.Sprintf("pg_isready -h %s -p %d", p.Hostname, p.Port),
			fmt.Sprintf("psql 'host=%s port=%d user=%s dbname=%s' -c 'SELECT 1'", p.Hostname, p.Port, p.Username, p.Database))}
	}
	out := []Result{
		result("source", OK, found.URI+", Postgres "+found.Server),
		problems("source settings", "wal_level, role and publication are right", found.Settings),
	}
	if len(tables) > 0 {
		out = append(out, problems("source tables", fmt.Sprintf("%d tables can be read and have what identifies their rows", found.Found), found.Tables))
	} else {
		out = append(out, result("source tables", Skipped, "there is no sync config to say which"))
	}
	return append(out, problems("source log", "what the source keeps for Sluice is bounded and within its budget", found.Log), Clock("source", found.Ahead))
}

// problems is one result for several problems; good is what to say of none.
func problems(check, good string, ps []replicator.Problem) Result {
	r := result(check, OK, good)
	var texts []string
	for _, p := range ps {
		text := p.Message
		if p.Code != "" {
			text = "[" + p.Code + "] " + text
		}
		texts = append(texts, text)
		if p.Fix != "" {
			r.Fixes = append(r.Fixes, p.Fix)
		}
		if r.State != Failed {
			r.State = Warning
		}
		if p.Fatal {
			r.State = Failed
		}
	}
	if len(texts) > 0 {
		r.Detail = strings.Join(texts, "\n")
	}
	return r
}

const (
	// odd is how far clocks may be apart: freshness is told by them.
	odd = 2 * time.Second
	// wrong is more than what tokens are given (spec/06 §5.1): 60 s, less than half.
	wrong = 25 * time.Second
)

// Clock judges how far another clock is ahead of this machine's.
func Clock(of string, ahead time.Duration) Result {
	check, fix := "clock of "+of, "sudo timedatectl set-ntp true # on both machines"
	apart := ahead.Abs().Round(time.Millisecond)
	side := "ahead of"
	if ahead < 0 {
		side = "behind"
	}
	detail := fmt.Sprintf("%s %s this machine's", apart, side)
	switch {
	case apart > wrong:
		return result(check, Failed, detail+": tokens and freshness are judged wrongly", fix)
	case apart > odd:
		return result(check, Warning, detail+": freshness is told wrongly", fix)
	}
	return result(check, OK, detail)
}

// Keys fetches the key sets that tokens are verified with.
func Keys(ctx context.Context, f *config.File) []Result {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	var out []Result
	static := len(f.Auth.Keys)
	if f.Auth.SupabaseSecret != "" {
		static++
	}
	for _, set := range gateway.CheckKeys(ctx, f.Auth) {
		check := "keys at " + bare(set.URI)
		fix := "curl -sS -m 10 '" + bare(set.URI) + "'"
		switch {
		case set.Err != nil:
			out = append(out, result(check, Failed, strings.ReplaceAll(errs.Cause(set.Err), set.URI, bare(set.URI)), fix))
		case set.Keys == 0:
			out = append(out, result(check, Failed, "has no key that can be used: RSA, EC or OKP, for signatures", fix))
		default:
			out = append(out, result(check, OK, fmt.Sprintf("%d keys", set.Keys)))
		}
	}
	switch {
	case len(out) == 0 && static == 0:
		out = append(out, result("keys", Failed, "client_auth has no key and no jwks_uri: no token can be verified"))
	case static > 0:
		out = append(out, result("keys", OK, fmt.Sprintf("%d in the config", static)))
	}
	if len(f.Auth.Audience) == 0 && !f.Auth.Supabase {
		out = append(out, result("audience", Failed, "client_auth.audience is empty: no token is accepted"))
	}
	return out
}

// bare is a URI without what may be secret in it.
func bare(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return "jwks_uri"
	}
	return u.Scheme + "://" + u.Host + u.Path
}

// Storage looks at where bucket-store keeps its data.
func Storage(f *config.File) Result {
	cfg, err := bucketstore.FromFile(f)
	if err != nil {
		return result("storage", Failed, errs.Cause(err))
	}
	where, err := bucketstore.Check(cfg)
	if err != nil {
		return result("storage", Failed, err.Error(), "ls -ld '"+cfg.Dir+"'; df -h '"+cfg.Dir+"'")
	}
	return result("storage", OK, where)
}

// Services looks whether the parts that are processes of their own listen. If
// neither bucket-store nor the replicator does, they are taken to run in one
// process, which needs no network, whoever else has a NATS server there.
func Services(ctx context.Context, f *config.File) []Result {
	nats := "127.0.0.1:4222"
	if u, err := url.Parse(f.Sluice.NATSURL); err == nil && u.Host != "" {
		nats = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "4222"))
	}
	type place struct{ name, address string }
	places := []place{{"NATS", nats}, {"replicator", f.Sluice.Replicator.Address}, {"compactor", f.Sluice.Compactor.Address}}
	for address := range strings.SplitSeq(f.Sluice.BucketStore.Address, ",") {
		places = slices.Insert(places, 1, place{"bucket-store", strings.TrimSpace(address)})
	}
	failures := make([]error, len(places))
	var wg sync.WaitGroup
	for i, p := range places {
		wg.Go(func() {
			d := net.Dialer{Timeout: 3 * time.Second}
			c, err := d.DialContext(ctx, "tcp", p.address)
			if err == nil {
				err = c.Close()
			}
			failures[i] = err
		})
	}
	wg.Wait()
	if !slices.Contains(failures[1:len(failures)-1], nil) {
		return []Result{result("services", Skipped, "none listens where the config says: they run in one process, or not at all")}
	}
	var out []Result
	for i, p := range places {
		if failures[i] == nil {
			out = append(out, result(p.name, OK, "listens on "+p.address))
			continue
		}
		host, port, _ := net.SplitHostPort(p.address)
		out = append(out, result(p.name, Failed, failures[i].Error(), fmt.Sprintf("nc -vz %s %s", host, port)))
	}
	return out
}

// Gateway compares a gateway's clock with ours.
func Gateway(ctx context.Context, client *http.Client, base string) Result {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+"/probes/liveness", nil)
	if err != nil {
		return result("clock of gateway", Failed, err.Error())
	}
	asked := time.Now()
	resp, err := cmp.Or(client, http.DefaultClient).Do(r)
	if err != nil {
		return result("clock of gateway", Skipped, "it cannot be reached")
	}
	defer resp.Body.Close()
	at, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return result("clock of gateway", Skipped, "it does not tell its time")
	}
	// The header has whole seconds: half of one is the least wrong.
	return Clock("gateway", at.Add(500*time.Millisecond).Sub(asked.Add(time.Since(asked)/2)).Truncate(500*time.Millisecond))
}

// Worst reports whether a check failed.
func Worst(rs []Result) error {
	var failed []string
	for _, r := range rs {
		if r.State == Failed {
			failed = append(failed, r.Check)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return errors.New("failed: " + strings.Join(failed, ", "))
}
