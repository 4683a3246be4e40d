package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/services/sluice/internal/admin"
)

type sessionsCmd struct {
	URL   []string `env:"SLUICE_URL" placeholder:"URL" help:"Where gateways are; a name that stands for several addresses is all of them. Default as for status."`
	User  string   `help:"Only those of this user."`
	Limit int      `default:"100" help:"How many to show of each gateway, those that are most behind first; at most 1000."`
	JSON  bool     `help:"Print JSON."`
}

// gatewaySessions is what one gateway said.
type gatewaySessions struct {
	URL     string `json:"url"`
	Address string `json:"address"`
	Error   string `json:"error,omitempty"`
	admin.Sessions
	failure error
}

// sessionsTime bounds the answers behind one URL.
const sessionsTime = 10 * time.Second

func (s *sessionsCmd) Run(c *cli, t terminal) error {
	urls := s.URL
	if len(urls) == 0 {
		urls = []string{""}
	}
	var all []gatewaySessions
	for _, u := range urls {
		a, _, err := (&instance{URL: u}).client(c)
		if err != nil {
			return err
		}
		all = append(all, s.ask(a)...)
	}
	// One gateway may be there under several addresses, and a name like
	// localhost may stand for one at which nobody listens.
	seen := map[string]bool{}
	all = slices.DeleteFunc(all, func(g gatewaySessions) bool {
		again := g.failure == nil && seen[g.Gateway] || g.failure != nil && seen[g.URL] && loopback(g.Address)
		if g.failure == nil {
			seen[g.Gateway], seen[g.URL] = true, true
		}
		return again
	})
	var failed error
	for _, g := range all {
		if g.failure != nil {
			failed = g.failure
		}
	}
	if s.JSON {
		return errors.Join(t.json(map[string]any{"gateways": all}), failed)
	}
	return errors.Join(printSessions(t.out, all, time.Now()), failed)
}

// ask asks every gateway that a stands for, those that answer first.
func (s *sessionsCmd) ask(a *admin.Client) (all []gatewaySessions) {
	ctx, cancel := context.WithTimeout(context.Background(), sessionsTime)
	defer cancel()
	clients, addresses, err := a.Each(ctx)
	if err != nil {
		return []gatewaySessions{{URL: a.URL, Error: err.Error(), failure: err}}
	}
	for n, x := range clients {
		g := gatewaySessions{URL: a.URL, Address: addresses[n]}
		if g.Sessions, g.failure = x.Sessions(ctx, s.User, s.Limit); g.failure != nil {
			g.Error = errs.Cause(g.failure)
		}
		all = append(all, g)
	}
	slices.SortStableFunc(all, func(a, b gatewaySessions) int { return cmp.Compare(min(len(a.Error), 1), min(len(b.Error), 1)) })
	return all
}

func printSessions(w io.Writer, all []gatewaySessions, now time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "GATEWAY\tUSER\tCLIENT\tAGENT\tBY\tSINCE\tBUCKETS\tCHECKPOINT\tBEHIND")
	for _, g := range all {
		for _, s := range g.Sessions.Sessions {
			behind := "-"
			if b := s.Behind; b.Checkpoints > 0 {
				behind = fmt.Sprintf("%d checkpoints, %d ops, %s", b.Checkpoints, b.Ops, (time.Duration(b.MS) * time.Millisecond).Round(100*time.Millisecond))
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", g.Gateway, clip(s.User), clip(cmp.Or(s.Client, "-")), clip(cmp.Or(s.Agent, "-")), s.Transport,
				now.Sub(s.Since).Round(time.Second), s.Buckets, s.Checkpoint, behind)
		}
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print the sessions: %w", err)
	}
	for _, g := range all {
		switch {
		case g.Error != "":
			fmt.Fprintf(w, "\n%s %s: %s\n", g.URL, g.Address, g.Error)
		case len(g.Sessions.Sessions) < g.Total:
			fmt.Fprintf(w, "\n%s: these are %d of %d; --limit and --user show others\n", g.Gateway, len(g.Sessions.Sessions), g.Total)
		default:
			fmt.Fprintf(w, "\n%s: %d in all\n", g.Gateway, g.Total)
		}
	}
	return nil
}

// clip keeps a cell of a table short.
func clip(s string) string {
	const most = 40
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// loopback reports whether an address is of this machine only.
func loopback(address string) bool {
	a, err := netip.ParseAddrPort(address)
	return err == nil && a.Addr().IsLoopback()
}
