package rpc

import (
	"context"
	"log/slog"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluicesync/sluice/libs/kit/service"
)

// Each reports the processor time of both ends, for that is what a process that
// runs all services saves.

func BenchmarkCall(b *testing.B) {
	c := benchPipe(b, grpc.ServiceDesc{ServiceName: "test.Echo", HandlerType: (*any)(nil), Methods: description.Methods})
	cpu := processorTime(b)
	for b.Loop() {
		if _, err := call(b.Context(), c, "hello"); err != nil {
			b.Fatal(err)
		}
	}
	cpu()
}

func BenchmarkStream(b *testing.B) {
	block := wrapperspb.Bytes(make([]byte, 256<<10))
	desc := grpc.StreamDesc{StreamName: "Blocks", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		for {
			if err := s.SendMsg(block); err != nil {
				return err
			}
		}
	}}
	c := benchPipe(b, grpc.ServiceDesc{ServiceName: "test.Blocks", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{desc}})
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	s, err := c.NewStream(ctx, &desc, "/test.Blocks/Blocks", grpc.WaitForReady(true))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(256 << 10)
	cpu := processorTime(b)
	for b.Loop() {
		var m wrapperspb.BytesValue
		if err := s.RecvMsg(&m); err != nil {
			b.Fatal(err)
		}
	}
	cpu()
}

func benchPipe(b *testing.B, desc grpc.ServiceDesc) grpc.ClientConnInterface {
	b.ReportAllocs()
	lis, c := Pipe()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, lis, service.Env{Log: slog.New(slog.DiscardHandler)}, func(r grpc.ServiceRegistrar) { r.RegisterService(&desc, &echo{}) })
	}()
	b.Cleanup(func() {
		c.Close()
		stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	if _, err := call(b.Context(), c, ""); err != nil && len(desc.Methods) > 0 {
		b.Fatal(err)
	}
	return c
}

func processorTime(b *testing.B) (report func()) {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	start := used()
	return func() { b.ReportMetric(float64(used()-start)/float64(b.N), "cpu-ns/op") }
}
