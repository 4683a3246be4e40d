package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

type catalog struct {
	pb.UnimplementedCatalogServer
	*API
}

const defaultPrefix = "powersync_"

// nameSuffix is the random end of a stream's name.
func nameSuffix() string {
	var b [2]byte
	rand.Read(b[:])
	return "_" + hex.EncodeToString(b[:])
}

// Deploy makes a stream of a config, unless a live one has what it needs.
func (c *catalog) Deploy(ctx context.Context, m *pb.DeployRequest) (*pb.DeployReply, error) {
	wanted := model.Stream{
		Config: m.GetConfig(), Content: m.GetContent(), Parts: m.GetParts(), Tables: wire.ModelTablePatterns(m.GetTables()), Values: wire.ModelValueOptions(m.GetValues()),
		State: model.Processing, Created: model.Micros(c.Now().UnixMicro()), FromFile: m.GetFromFile(), DeployedBy: m.GetDeployedBy(),
		CustomCheckpoints: m.GetCustomCheckpoints(),
	}
	if wanted.FromFile {
		wanted.Filed = cmp.Or(wanted.Content, wanted.Config)
	}
	prefix := m.GetSlotPrefix()
	if prefix == "" {
		prefix = defaultPrefix
	}
	suffix := nameSuffix()
	var d deployment
	tables := make([][]model.TablePattern, len(m.GetPartTables()))
	for i, p := range m.GetPartTables() {
		tables[i] = wire.ModelTablePatterns(p.GetTables())
	}
	made, err := c.Store.Change(ctx, func(streams []model.Stream) store.Change {
		d = decide(streams, &wanted, tables, m.GetForce())
		switch {
		case m.GetDryRun():
			return store.Change{}
		case d.stream == nil:
			d.change.New, d.change.Prefix, d.change.Suffix = &wanted, prefix, suffix
		}
		return d.change
	})
	if err != nil {
		return nil, mapped(fmt.Errorf("deploy: %w", err))
	}
	reply := &pb.DeployReply{Created: d.stream == nil, Kept: d.kept, Served: d.served, Added: d.added, Tables: wire.TablePatterns(d.tables), Reason: d.reason}
	if d.replaced != nil {
		reply.Replaced = wire.Stream(d.replaced)
	}
	switch {
	case d.stream != nil:
		if d.added && !m.GetDryRun() {
			c.Log.Info("replication stream gets more to make", "stream", d.stream.ID, "layers", len(d.stream.Layers), "tables", len(d.tables))
		}
		reply.Stream = wire.Stream(d.stream)
	case made != nil:
		c.Log.Info("replication stream made", "stream", made.ID, "name", made.Name, "deployed_by", made.DeployedBy)
		reply.Stream = wire.Stream(made)
	}
	if !m.GetDryRun() {
		c.statesChanged()
	}
	return reply, nil
}

// deployment is what is to be done to deploy a config.
type deployment struct {
	stream   *model.Stream // that serves it, as it is then; nil = a new one
	change   store.Change
	kept     bool                 // it is not served, see DeployReply
	served   bool                 // clients are served by another config than before
	added    bool                 // clients will be, once what the stream lacks is copied
	tables   []model.TablePattern // that are copied for that
	reason   string               // why a new one is made, beside the active one
	replaced *model.Stream        // was to become the active one, and is given up
}

// decide says how to deploy wanted. partTables are the tables that each of its
// parts reads.
func decide(streams []model.Stream, wanted *model.Stream, partTables [][]model.TablePattern, force bool) deployment {
	var processing, active *model.Stream
	for i := range streams {
		wanted.Era = max(wanted.Era, streams[i].EraNow())
		switch s := &streams[i]; s.State {
		case model.Processing:
			processing = s
		case model.Active:
			active = s
		}
	}
	live := cmp.Or(processing, active)
	if live != nil && !force {
		if serves(live, wanted) {
			return edit(deployment{}, live, wanted)
		}
		// A service that starts again deploys the file again: that must not undo
		// what was deployed by hand after the file.
		if wanted.FromFile && !live.FromFile && slices.ContainsFunc(streams, func(s model.Stream) bool { return filed(&s, wanted) }) {
			return deployment{stream: live, kept: true}
		}
	}
	var d deployment
	if processing != nil {
		d.replaced = processing
		d.change.States = map[model.StreamID]model.StreamState{processing.ID: model.Stopped}
	}
	switch {
	case force:
		d.reason = "it was asked for"
	case active != nil && (serves(active, wanted) || fits(active, wanted)):
		return edit(d, active, wanted)
	case processing != nil && fits(processing, wanted):
		return edit(deployment{}, processing, wanted)
	case active != nil:
		var layer model.Layer
		if layer, d.reason = lacks(active, wanted, partTables); d.reason == "" {
			return add(d, active, wanted, layer)
		}
	}
	return d
}

// serves tells whether s serves clients by what wanted means, or by its text, or
// is about to.
func serves(s, wanted *model.Stream) bool {
	text, content, edited := s.Text(), s.Serves(), s.EditedContent != ""
	if s.Next != "" {
		text, content, edited = s.Next, s.NextContent, true
	}
	if text != wanted.Config && (wanted.Content == "" || content != wanted.Content) {
		return false
	}
	return alike(s, wanted) && within(wanted.Tables, s.Reads()) && (edited || len(s.Tables) == len(wanted.Tables))
}

// fits tells whether s has all that wanted makes of rows.
func fits(s, wanted *model.Stream) bool {
	return len(s.Parts) > 0 && wanted.Content != "" && within(wanted.Parts, s.Makes(s.Layered)) && alike(s, wanted)
}

// alike tells whether s converts values and takes write checkpoints as wanted
// does.
func alike(s, wanted *model.Stream) bool {
	return s.Values == wanted.Values && s.CustomCheckpoints == wanted.CustomCheckpoints
}

// maxLayers bounds what every change of a row is evaluated for: with that many, a
// new stream leaves behind what nobody is served any more.
const maxLayers = 16

// lacks is what wanted makes of rows that s does not, or why that cannot be added
// to s. It has no parts if all that is lacking is being copied.
func lacks(s, wanted *model.Stream, partTables [][]model.TablePattern) (layer model.Layer, reason string) {
	switch {
	case len(s.Parts) == 0 || wanted.Content == "" || len(partTables) != len(wanted.Parts):
		return layer, "one of the two was deployed by a version that did not say what it is made of"
	case s.Values != wanted.Values:
		return layer, "the source's values are converted in another way"
	case s.CustomCheckpoints != wanted.CustomCheckpoints:
		return layer, "write checkpoints come from elsewhere"
	}
	has := s.Makes(uint32(len(s.Layers)))
	kept := 0
	for i, part := range wanted.Parts {
		switch {
		case slices.Contains(has, part):
			kept++
		case len(partTables[i]) == 0:
			return layer, "the event definitions differ"
		default:
			layer.Parts = append(layer.Parts, part)
			for _, t := range partTables[i] {
				if !slices.Contains(layer.Tables, t) {
					layer.Tables = append(layer.Tables, t)
				}
			}
		}
	}
	switch {
	case kept == 0:
		return layer, "they have nothing in common"
	case len(layer.Parts) > 0 && len(s.Layers) >= maxLayers:
		return layer, fmt.Sprintf("%d times something was added", maxLayers)
	}
	layer.Config = wanted.Config
	return layer, ""
}

// add makes s serve clients by wanted once it has made layer for the rows that
// are there.
func add(d deployment, s, wanted *model.Stream, layer model.Layer) deployment {
	after := *s
	if len(layer.Parts) > 0 {
		after.Layers = append(slices.Clip(s.Layers), layer)
	}
	after.Next, after.NextContent = wanted.Config, wanted.Content
	after.FromFile, after.Filed = wanted.FromFile, cmp.Or(wanted.Filed, s.Filed)
	d.stream, d.added = &after, true
	for _, l := range after.Layers[s.Layered:] {
		d.tables = append(d.tables, l.Tables...)
	}
	d.change.Edited = map[model.StreamID]store.Edit{s.ID: edited(&after)}
	return d
}

func edited(s *model.Stream) store.Edit {
	return store.Edit{
		Text: s.Edited, Content: s.EditedContent, Former: s.Former, Filed: s.Filed, FromFile: s.FromFile,
		Layers: s.Layers, Next: s.Next, NextContent: s.NextContent,
	}
}

func within[T comparable](some, all []T) bool {
	return !slices.ContainsFunc(some, func(x T) bool { return !slices.Contains(all, x) })
}

// filed tells whether wanted, which is from a file, is what s had from a file.
func filed(s, wanted *model.Stream) bool {
	if s.Filed == "" { // stored before it was kept, or by hand
		return s.FromFile && s.Config == wanted.Config
	}
	return s.Filed == wanted.Filed
}

// edit makes s serve clients by wanted, now, or if it is about to, then.
func edit(d deployment, s, wanted *model.Stream) deployment {
	after := *s
	d.stream = &after
	if s.Next != "" && serves(s, wanted) {
		after.Next, after.NextContent = wanted.Config, cmp.Or(wanted.Content, s.NextContent)
		d.added = true
	} else {
		after.Next, after.NextContent = "", ""
		after.Edit(wanted.Config, wanted.Content)
		d.served = after.Serves() != s.Serves()
	}
	if d.served || s.Next != "" && after.Next == "" {
		after.FromFile = wanted.FromFile
	}
	after.Filed = cmp.Or(wanted.Filed, s.Filed)
	if after.Edited != s.Edited || d.served || after.Filed != s.Filed || after.Next != s.Next {
		d.change.Edited = map[model.StreamID]store.Edit{s.ID: edited(&after)}
	}
	return d
}

// Watch sends all live streams, again after every change.
func (c *catalog) Watch(_ *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.WatchReply]) error {
	for {
		changed := c.Catalog.Wait() // before the read, so that no change is missed
		streams, err := c.Store.Streams(stream.Context())
		if err != nil {
			return mapped(err)
		}
		if err := stream.Send(&pb.WatchReply{Streams: wire.Streams(live(streams))}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return mapped(stream.Context().Err())
		case <-c.Done:
			return errStopping
		}
	}
}

func live(streams []model.Stream) []model.Stream {
	return slices.DeleteFunc(streams, func(s model.Stream) bool { return s.State == model.Terminated })
}

// List describes everything.
func (c *catalog) List(ctx context.Context, m *pb.ListRequest) (*pb.ListReply, error) {
	streams, err := c.Store.Streams(ctx)
	if err != nil {
		return nil, mapped(err)
	}
	if !m.GetIncludeTerminated() {
		streams = live(streams)
	}
	reply := &pb.ListReply{Streams: wire.Streams(streams), Tables: map[int64]*pb.TableProgressList{}}
	for i := range streams {
		if streams[i].State == model.Terminated {
			continue
		}
		tables, err := c.Store.Tables(ctx, streams[i].ID)
		if err != nil {
			return nil, mapped(err)
		}
		reply.Tables[int64(streams[i].ID)] = &pb.TableProgressList{Tables: wire.TablesProgress(tables)}
	}
	size, err := c.Store.Size(ctx)
	if err != nil {
		return nil, mapped(err)
	}
	reply.Size = &pb.StorageSize{OperationsBytes: size.Operations, ParametersBytes: size.Parameters, ReplicationBytes: size.Replication}
	return reply, nil
}

// Teardown stops every live stream. Called again it changes nothing, and says
// what is left to clean up.
func (c *catalog) Teardown(ctx context.Context, _ *pb.TeardownRequest) (*pb.TeardownReply, error) {
	if _, err := c.Store.Change(ctx, func(streams []model.Stream) store.Change {
		states := map[model.StreamID]model.StreamState{}
		for i := range streams {
			if s := &streams[i]; s.State != model.Stopped && s.State != model.Terminated {
				states[s.ID] = model.Stopped
			}
		}
		return store.Change{States: states}
	}); err != nil {
		return nil, mapped(fmt.Errorf("stop every stream: %w", err))
	}
	streams, err := c.Store.Streams(ctx)
	if err != nil {
		return nil, mapped(err)
	}
	left := live(streams)
	c.Log.Warn("every replication stream is stopped, to be cleared", "streams", len(left))
	c.statesChanged()
	return &pb.TeardownReply{Streams: wire.Streams(left)}, nil
}
