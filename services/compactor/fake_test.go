package compactor

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// fakeStore is bucket-store as far as the compactor sees it: one active stream,
// buckets in memory.
type fakeStore struct {
	pb.UnimplementedCatalogServer
	pb.UnimplementedCompactionServer

	// fault is asked at every call but List, before it is carried out and again
	// after; an error of the second kind hides that it was.
	fault func(call string, after bool) error

	mu         sync.Mutex // guards what follows
	checkpoint model.OpID
	buckets    map[string][]model.Op // ascending
	changes    map[string]uint64     // since the last finished compaction
	lookups    int                   // superseded entries
	requests   []time.Duration       // ages of checkpoint requests
	calls      int
	holders    map[string]string // by bucket; "rests": nobody's turn unless it is named
}

const streamID = 1

func (f *fakeStore) register(r grpc.ServiceRegistrar) {
	pb.RegisterCatalogServer(r, f)
	pb.RegisterCompactionServer(r, f)
}

func (f *fakeStore) call(name string, work func() error) error {
	if f.fault != nil {
		if err := f.fault(name, false); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.calls++
	err := work()
	f.mu.Unlock()
	if err == nil && f.fault != nil {
		err = f.fault(name, true)
	}
	return err
}

func (f *fakeStore) List(context.Context, *pb.ListRequest) (*pb.ListReply, error) {
	return &pb.ListReply{Streams: []*pb.Stream{
		{Id: streamID, State: pb.StreamState_STREAM_STATE_ACTIVE},
		{Id: streamID + 1, State: pb.StreamState_STREAM_STATE_PROCESSING},
	}}, nil
}

func (f *fakeStore) Dirtiest(_ context.Context, req *pb.DirtiestRequest) (reply *pb.DirtiestReply, err error) {
	err = f.call("Dirtiest", func() error {
		if req.GetStream() != streamID {
			return errs.New(errs.S2001, "stream %d is not active", req.GetStream())
		}
		reply = &pb.DirtiestReply{Checkpoint: uint64(f.checkpoint)}
		for name, ops := range f.buckets {
			n := f.changes[name]
			switch {
			case len(req.GetOnly()) > 0:
				if !slices.Contains(req.GetOnly(), name) || name <= req.GetAfter() {
					continue
				}
			case req.GetMinChanges() == 0:
				if name <= req.GetAfter() {
					continue
				}
			case n < req.GetMinChanges() || n < uint64(len(ops)/10):
				continue
			}
			reply.Buckets = append(reply.Buckets, &pb.DirtyBucket{Bucket: name, Ops: uint64(len(ops)), Changes: n})
		}
		slices.SortFunc(reply.Buckets, func(a, b *pb.DirtyBucket) int {
			if len(req.GetOnly()) == 0 && req.GetMinChanges() > 0 {
				if c := cmp.Compare(b.GetChanges(), a.GetChanges()); c != 0 {
					return c
				}
			}
			return cmp.Compare(a.GetBucket(), b.GetBucket())
		})
		reply.Buckets = reply.Buckets[:min(len(reply.Buckets), int(req.GetLimit()))]
		return nil
	})
	return reply, err
}

// Hold knows no time: a turn lasts until it is released, a rest for ever.
func (f *fakeStore) Hold(_ context.Context, req *pb.HoldRequest) (reply *pb.HoldReply, err error) {
	err = f.call("Hold", func() error {
		reply = &pb.HoldReply{Checkpoint: uint64(f.checkpoint)}
		if f.holders == nil {
			f.holders = map[string]string{}
		}
		bucket := req.GetBucket()
		if bucket == "" {
			for name, ops := range f.buckets {
				n := f.changes[name]
				if f.holders[name] == "" && n >= max(req.GetMinChanges(), uint64(len(ops)/10)) && n > f.changes[bucket] {
					bucket = name
				}
			}
		}
		if by := f.holders[bucket]; bucket != "" && (by == "" || by == "rests" || by == req.GetHolder()) {
			f.holders[bucket] = req.GetHolder()
			reply.Bucket = &pb.DirtyBucket{Bucket: bucket}
		}
		return nil
	})
	return reply, err
}

func (f *fakeStore) Release(_ context.Context, req *pb.ReleaseRequest) (*pb.ReleaseReply, error) {
	f.mu.Lock() // no call: it is not missed if it fails
	defer f.mu.Unlock()
	if f.holders[req.GetBucket()] == req.GetHolder() {
		delete(f.holders, req.GetBucket())
		if req.GetRestMs() > 0 {
			f.holders[req.GetBucket()] = "rests"
		}
	}
	return &pb.ReleaseReply{}, nil
}

func (f *fakeStore) Scan(req *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanReply]) error {
	var blocks [][]byte
	err := f.call("Scan", func() error {
		ops := f.buckets[req.GetBucket()]
		for i := len(ops) - 1; i >= 0; i -= 3 {
			var block []byte
			for j := i; j >= 0 && j > i-3; j-- {
				op := ops[j]
				if op.ID > model.OpID(req.GetUpTo()) {
					continue
				}
				op.Data = ""
				block = wire.AppendOp(block, &op)
			}
			blocks = append(blocks, block)
		}
		return nil
	})
	for i, b := range blocks {
		if err == nil && f.fault != nil && i > 0 {
			err = f.fault("Scan block", false)
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.ScanReply{Ops: b}); err != nil {
			return err
		}
	}
	return err
}

func (f *fakeStore) Replace(_ context.Context, req *pb.ReplaceRequest) (reply *pb.ReplaceReply, err error) {
	err = f.call("Replace", func() error {
		ops := slices.Clone(f.buckets[req.GetBucket()])
		for _, m := range req.GetMoves() {
			i, ok := slices.BinarySearchFunc(ops, model.OpID(m.GetId()), func(o model.Op, id model.OpID) int { return cmp.Compare(o.ID, id) })
			switch {
			case !ok || ops[i].Kind == model.OpClear:
				return status.Errorf(codes.Aborted, "op %d is not what it was", m.GetId())
			case ops[i].Kind != model.OpMove:
				ops[i] = model.Op{ID: ops[i].ID, Kind: model.OpMove, Checksum: ops[i].Checksum, Target: model.OpID(m.GetTarget())}
			}
		}
		reply = &pb.ReplaceReply{}
		if to := model.OpID(req.GetClearTo()); to > 0 {
			folded := model.Op{ID: to, Kind: model.OpClear}
			n := 0
			for ; n < len(ops) && ops[n].ID <= to; n++ {
				if ops[n].Kind == model.OpPut {
					return status.Errorf(codes.Aborted, "op %d is a PUT", ops[n].ID)
				}
				folded.Checksum += ops[n].Checksum
				folded.Target = max(folded.Target, ops[n].Target)
			}
			if n > 0 {
				ops = append([]model.Op{folded}, ops[n:]...)
				reply.Cleared = uint64(n - 1)
			}
		}
		if req.GetFinished() {
			f.changes[req.GetBucket()] = 0
		}
		f.buckets[req.GetBucket()] = ops
		return nil
	})
	return reply, err
}

func (f *fakeStore) Reemit(_ context.Context, req *pb.ReemitRequest) (reply *pb.ReemitReply, err error) {
	err = f.call("Reemit", func() error {
		reply = &pb.ReemitReply{}
		ops := slices.Clone(f.buckets[req.GetBucket()])
		for _, op := range ops {
			if slices.Contains(req.GetOps(), uint64(op.ID)) {
				reply.Ops++
				reply.Bytes += uint64(len(op.Data))
				op.ID = f.checkpoint + model.OpID(reply.Ops)
				ops = append(ops, op)
			}
		}
		if reply.GetBytes() > req.GetBytes() {
			reply = &pb.ReemitReply{Reason: "too large"}
			return nil
		}
		f.checkpoint += model.OpID(reply.GetOps())
		reply.Checkpoint = uint64(f.checkpoint)
		f.buckets[req.GetBucket()] = ops
		return nil
	})
	return reply, err
}

func (f *fakeStore) CompactLookups(_ context.Context, req *pb.CompactLookupsRequest) (reply *pb.CompactLookupsReply, err error) {
	err = f.call("CompactLookups", func() error {
		n := min(f.lookups, 100)
		f.lookups -= n
		reply = &pb.CompactLookupsReply{Removed: uint64(n)}
		if f.lookups > 0 {
			reply.Next = []byte{1}
		}
		return nil
	})
	return reply, err
}

func (f *fakeStore) ExpireRequests(_ context.Context, req *pb.ExpireRequestsRequest) (reply *pb.ExpireRequestsReply, err error) {
	err = f.call("ExpireRequests", func() error {
		reply = &pb.ExpireRequestsReply{}
		from := len(req.GetAfter())
		for i := from; i < len(f.requests) && reply.Next == nil; i++ {
			switch {
			case i == from+2:
				reply.Next = make([]byte, i)
			case f.requests[i] >= time.Duration(req.GetAgeMs())*time.Millisecond:
				f.requests[i] = 0
				reply.Removed++
			}
		}
		return nil
	})
	return reply, err
}

func (f *fakeStore) snapshot() map[string][]model.Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.buckets)
}

// reduced is what a new client ends up with.
type reduced struct {
	Rows     map[string]string
	Checksum model.Checksum
}

func reduce(ops []model.Op) reduced {
	r := reduced{Rows: map[string]string{}}
	for _, op := range ops {
		r.Checksum += op.Checksum
		k := op.ObjectType + "/" + op.ObjectID + "/" + op.Key.Subkey()
		switch op.Kind {
		case model.OpPut:
			r.Rows[k] = op.Data
		case model.OpRemove:
			delete(r.Rows, k)
		case model.OpClear:
			clear(r.Rows)
		}
	}
	return r
}
