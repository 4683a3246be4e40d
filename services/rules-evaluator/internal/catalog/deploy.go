package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

const (
	// pollInterval is how soon a changed file is seen.
	pollInterval = time.Second
	// deployTimeout bounds one attempt to deploy.
	deployTimeout = 30 * time.Second
)

// Source is where the configured sync config is; none if both are empty.
type Source struct {
	Path    string // a file, watched
	Content string // the text itself, if Path is ""
	// ExitOnError: an invalid config at the start is an error of the service.
	ExitOnError bool
	// SlotPrefix of new streams' names; "" = the store's default.
	SlotPrefix string
}

// Deploy deploys the sync config that s names, and again whenever the file
// changes, until ctx ends. An invalid one is reported and changes nothing.
func (c *Catalog) Deploy(ctx context.Context, s Source) error {
	if s.Path == "" {
		if s.Content == "" {
			return nil
		}
		if err := c.deploy(ctx, "configuration", s.Content, s); err != nil && s.ExitOnError && ctx.Err() == nil {
			return err
		}
		return nil
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var seen os.FileInfo
	var content string
	var missing bool
	for first := true; ; first = false {
		info, text, err := readChanged(s.Path, seen)
		switch {
		case err != nil:
			if first && s.ExitOnError {
				return errs.Wrap(errs.R0001, err, "sync config %s cannot be read", s.Path)
			}
			if !missing {
				c.log.Error("the sync config cannot be read; the old one stays", "path", s.Path, "error", err)
			}
			missing = true
		case info != nil:
			seen, missing = info, false
			if !first && text == content {
				break
			}
			content = text
			if err := c.deploy(ctx, s.Path, text, s); err != nil && first && s.ExitOnError && ctx.Err() == nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// readChanged reads a file if it is not as it was seen.
func readChanged(path string, seen os.FileInfo) (os.FileInfo, string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, "", err
	}
	if seen != nil && info.ModTime().Equal(seen.ModTime()) && info.Size() == seen.Size() && os.SameFile(info, seen) {
		return nil, "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	return info, string(b), nil
}

// deploy compiles content and makes a stream of it. Everything wrong with it is
// logged; the error says only that, or that the store refused it. While the
// store cannot be reached it tries again.
func (c *Catalog) deploy(ctx context.Context, name, content string, s Source) error {
	plan, diagnostics := rules.Compile(content, rules.Options{DefaultSchema: c.defaultSchema})
	for i := range diagnostics {
		d := &diagnostics[i]
		args := []any{"path", name, "line", d.Line, "column", d.Column, "problem", d.Message}
		if d.Fatal {
			c.log.Error("sync config", args...)
		} else {
			c.log.Warn("sync config", args...)
		}
	}
	if err := fatal(diagnostics); err != nil {
		c.log.Error("the sync config is invalid and not deployed; the old one stays", "path", name)
		return err
	}
	for {
		r, err := c.call(ctx, content, plan, s)
		if err == nil && r.GetKept() {
			c.log.Warn("another sync config was deployed by hand and stays until this one changes", "path", name, "stream", r.GetStream().GetId())
			return nil
		}
		if err == nil {
			c.log.Info("sync config deployed", "path", name, "stream", r.GetStream().GetId(), "new", r.GetCreated(), "served", r.GetServed(), "added", r.GetAdded())
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if code := errs.CodeOf(err); code != "" && !errs.IsRetry(err) {
			c.log.Error("the store refuses the sync config", "path", name, "code", code, "error", err)
			return err
		}
		c.log.Warn("deploying the sync config failed; trying again", "path", name, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (c *Catalog) call(ctx context.Context, content string, plan *rules.Plan, s Source) (*pb.DeployReply, error) {
	ctx, cancel := context.WithTimeout(ctx, deployTimeout)
	defer cancel()
	return c.client.Deploy(ctx, &pb.DeployRequest{
		Config:     content,
		Tables:     wire.TablePatterns(plan.SourceTables()),
		Values:     wire.ValueOptions(plan.Values()),
		SlotPrefix: s.SlotPrefix,
		FromFile:   true,

		CustomCheckpoints: plan.CustomCheckpoints(),
		Content:           fmt.Sprintf("%x", plan.Identity()),
		Parts:             plan.Parts(),
		PartTables:        wire.PartTables(plan.PartTables()),
	}, grpc.WaitForReady(true))
}

// fatal joins the fatal ones of diagnostics to an error with R0001.
func fatal(diagnostics []rules.Diagnostic) error {
	var all []error
	for i := range diagnostics {
		if d := &diagnostics[i]; d.Fatal {
			all = append(all, fmt.Errorf("%d:%d: %s", d.Line, d.Column, d.Message))
		}
	}
	if all == nil {
		return nil
	}
	err := errors.Join(all...)
	return errs.Wrap(errs.R0001, err, "the sync config is invalid: %s", err)
}
