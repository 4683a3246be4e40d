package replicator

import (
	"context"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// api is the Source service.
type api struct {
	pb.UnimplementedSourceServer
	r *replicator
}

func (a *api) Position(ctx context.Context, _ *pb.PositionRequest) (*pb.PositionReply, error) {
	p, err := a.r.head.Position(ctx)
	if err != nil {
		return nil, errs.Wrap(errs.S1120, err, "the source's position cannot be read").Retryable()
	}
	return &pb.PositionReply{Position: string(p)}, nil
}

func (a *api) Mark(context.Context, *pb.MarkRequest) (*pb.MarkReply, error) {
	a.r.head.Mark()
	return &pb.MarkReply{}, nil
}

func (a *api) Diagnose(ctx context.Context, req *pb.DiagnoseRequest) (*pb.DiagnoseReply, error) {
	streams := make([]source.StreamTables, len(req.GetStreams()))
	for i, s := range req.GetStreams() {
		streams[i] = source.StreamTables{ID: model.StreamID(s.GetStream()), Name: s.GetName(), Tables: wire.ModelTablePatterns(s.GetTables())}
	}
	reply := &pb.DiagnoseReply{}
	for _, j := range a.r.jobs.list() {
		reply.HeartbeatRead = max(reply.HeartbeatRead, j.read.Load())
		reply.HeartbeatPublished = max(reply.HeartbeatPublished, j.published.Load())
	}
	d, err := a.r.src.Diagnose(ctx, streams)
	if err != nil {
		// Not connected is an answer.
		reply.Uri = a.r.cfg.Connection.Postgres.Redacted()
		reply.DefaultSchema = "public"
		reply.Problems = []*pb.Problem{{Fatal: true, Code: string(errs.CodeOf(err)), Message: errs.Cause(err)}}
		return reply, nil
	}
	reply.Connected, reply.Uri, reply.DefaultSchema, reply.Problems = true, d.URI, d.DefaultSchema, problems(d.Problems)
	for _, s := range d.Streams {
		sd := &pb.StreamDiagnosis{Stream: int64(s.ID), LagBytes: s.Lag.Bytes, WalStatus: s.Lag.WALStatus, SafeWalSize: s.Lag.SafeWALSize, MaxSlotWalKeepSize: s.Lag.MaxSlotWALKeepSize, Missing: s.Lag.Missing}
		if j := a.r.jobs.get(s.ID); j != nil {
			sd.Running = j.running.Load()
			sd.HeartbeatRead, sd.HeartbeatPublished = j.read.Load(), j.published.Load()
		}
		for _, t := range s.Tables {
			sd.Tables = append(sd.Tables, &pb.TableDiagnosis{Schema: t.Schema, Name: t.Name, Pattern: t.Pattern, ReplicationId: t.Key, Estimate: t.Estimate, Problems: problems(t.Problems)})
		}
		reply.Streams = append(reply.Streams, sd)
	}
	return reply, nil
}

func problems(ps []source.Problem) []*pb.Problem {
	var out []*pb.Problem
	for _, p := range ps {
		out = append(out, &pb.Problem{Fatal: p.Fatal, Code: p.Code, Message: p.Message, Fix: p.Fix})
	}
	return out
}

func (a *api) Schema(ctx context.Context, _ *pb.SchemaRequest) (*pb.SchemaReply, error) {
	tables, err := a.r.src.Schema(ctx)
	if err != nil {
		return nil, errs.Wrap(errs.S1120, err, "the source's schema cannot be read").Retryable()
	}
	reply := &pb.SchemaReply{DefaultSchema: "public"}
	for _, t := range tables {
		st := &pb.SchemaTable{Schema: t.Schema, Name: t.Name, Rows: t.Rows, Bytes: t.Bytes}
		for _, c := range t.Columns {
			st.Columns = append(st.Columns, &pb.SchemaColumn{Name: c.Name, Type: c.Type, SqliteType: c.SQLiteType})
		}
		reply.Tables = append(reply.Tables, st)
	}
	return reply, nil
}

func (a *api) ExecuteSQL(ctx context.Context, req *pb.ExecuteSQLRequest) (*pb.ExecuteSQLReply, error) {
	if !a.r.cfg.Connection.DebugAPI {
		return nil, errs.New(errs.S2001, "debug_api is off for this connection")
	}
	result, err := a.r.src.Execute(ctx, req.GetQuery(), req.GetJsonArgs())
	if err != nil {
		return &pb.ExecuteSQLReply{Error: errs.Cause(err)}, nil
	}
	return &pb.ExecuteSQLReply{Success: true, Columns: result.Columns, JsonRows: result.Rows}, nil
}
