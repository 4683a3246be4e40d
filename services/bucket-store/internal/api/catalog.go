package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

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

// prefixOf is what a stream's name began with.
func prefixOf(s *model.Stream) string {
	end := strconv.FormatInt(int64(s.ID), 10) + "_"
	if i := strings.LastIndex(s.Name, end); i >= 0 {
		return s.Name[:i]
	}
	return defaultPrefix
}

// Deploy makes a stream of a config, unless there is one of the same content.
func (c *catalog) Deploy(ctx context.Context, m *pb.DeployRequest) (*pb.DeployReply, error) {
	wanted := model.Stream{
		Config: m.GetConfig(), Content: m.GetContent(), Tables: wire.ModelTablePatterns(m.GetTables()), Values: wire.ModelValueOptions(m.GetValues()),
		State: model.Processing, Created: model.Micros(c.Now().UnixMicro()), FromFile: m.GetFromFile(),
		CustomCheckpoints: m.GetCustomCheckpoints(),
	}
	prefix := m.GetSlotPrefix()
	if prefix == "" {
		prefix = defaultPrefix
	}
	suffix := nameSuffix()
	var same *model.Stream
	kept := false
	made, err := c.Store.Change(ctx, func(streams []model.Stream) store.Change {
		same, kept = nil, false
		var processing, active *model.Stream
		for i := range streams {
			switch s := &streams[i]; s.State {
			case model.Processing:
				processing = s
			case model.Active:
				active = s
			}
		}
		live := cmp.Or(processing, active)
		change := store.Change{}
		if processing != nil {
			change.States = map[model.StreamID]model.StreamState{processing.ID: model.Stopped}
		}
		switch {
		case live == nil || m.GetForce():
		case sameContent(live, &wanted):
			same = new(*live)
			return edit(store.Change{}, same, wanted.Config)
		// A service that starts again deploys the file again: that must not undo
		// what was deployed by hand after the file.
		case wanted.FromFile && !live.FromFile && slices.ContainsFunc(streams, func(s model.Stream) bool { return s.FromFile && sameText(&s, &wanted) }):
			same, kept = live, true
			return store.Change{}
		case active != nil && sameContent(active, &wanted):
			same = new(*active) // and the one that was to replace it is given up
			return edit(change, same, wanted.Config)
		}
		change.New, change.Prefix, change.Suffix = &wanted, prefix, suffix
		return change
	})
	if err != nil {
		return nil, mapped(fmt.Errorf("deploy: %w", err))
	}
	if made != nil {
		c.Log.Info("replication stream made", "stream", made.ID, "name", made.Name)
	}
	c.Hub.StatesChanged()
	c.Catalog.Wake()
	if made == nil {
		return &pb.DeployReply{Stream: wire.Stream(same), Kept: kept}, nil
	}
	return &pb.DeployReply{Stream: wire.Stream(made), Created: true}, nil
}

// sameText tells whether wanted's config is the one of s, as far as its text
// and content can tell.
func sameText(s, wanted *model.Stream) bool {
	return s.Config == wanted.Config || s.Content != "" && s.Content == wanted.Content
}

// sameContent tells whether s replicates what wanted would.
func sameContent(s, wanted *model.Stream) bool {
	return sameText(s, wanted) && slices.Equal(s.Tables, wanted.Tables) && s.Values == wanted.Values && s.CustomCheckpoints == wanted.CustomCheckpoints
}

// edit makes text the config's of s, if it is another, and adds that to c.
func edit(c store.Change, s *model.Stream, text string) store.Change {
	if s.Text() == text {
		return c
	}
	if s.Edited = text; text == s.Config {
		s.Edited = ""
	}
	c.Edited = map[model.StreamID]string{s.ID: s.Edited}
	return c
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
