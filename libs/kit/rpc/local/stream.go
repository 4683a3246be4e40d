package local

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// clientStream is the caller's end of a stream.
type clientStream struct {
	*call
	desc    *grpc.StreamDesc
	options options
	last    bool // nothing may be sent any more; owned by who sends
}

func (s *clientStream) Context() context.Context { return s.caller }

func (s *clientStream) Header() (metadata.MD, error) {
	select {
	case <-s.headed:
	case <-s.caller.Done():
	}
	header, _ := s.metadata()
	return header, nil
}

func (s *clientStream) Trailer() metadata.MD {
	_, trailer := s.metadata()
	return trailer
}

func (s *clientStream) CloseSend() error {
	s.last = true
	s.requests.close()
	return nil
}

// SendMsg returns io.EOF if the stream has ended; RecvMsg tells how.
func (s *clientStream) SendMsg(v any) error {
	if s.last {
		return status.Error(codes.Internal, "SendMsg after the last message")
	}
	m, err := encode(v, s.pipe.MaxMessage)
	if err != nil {
		s.finish(err, message{})
		return err
	}
	ok := s.requests.put(m, s.caller.Done(), s.done)
	if !s.desc.ClientStreams {
		return s.CloseSend()
	}
	if !ok {
		return io.EOF
	}
	return nil
}

// RecvMsg returns io.EOF after the last message of a stream that ended well.
func (s *clientStream) RecvMsg(v any) error {
	err := s.receive(v)
	if err == nil && !s.desc.ServerStreams { // the end follows the only message
		switch err = s.receive(nil); err {
		case io.EOF:
			s.options.fill(s.call)
			return nil
		case nil:
			err = status.Error(codes.Internal, "more than one reply to a call that has one")
		}
	} else if err == io.EOF && !s.desc.ServerStreams {
		err = status.Error(codes.Internal, "no reply to a call that has one")
	}
	if err != nil {
		s.finish(err, message{})
		s.options.fill(s.call)
	}
	return err
}

func (s *clientStream) receive(v any) error {
	m, got := s.replies.take(s.caller.Done())
	switch got {
	case stopped:
		return status.FromContextError(s.caller.Err()).Err()
	case closed:
		<-s.done
		if s.err != nil {
			return s.err
		}
		return io.EOF
	}
	if v == nil {
		return nil
	}
	return m.decode(v)
}

// serverStream is the handler's end of a stream.
type serverStream struct{ *call }

func (s serverStream) Context() context.Context  { return s.ctx }
func (s serverStream) SetTrailer(md metadata.MD) { _ = s.call.SetTrailer(md) } // it does not fail

func (s serverStream) SendMsg(v any) error {
	m, err := encode(v, s.pipe.MaxMessage)
	if err != nil {
		return err
	}
	s.sendHeader()
	if !s.replies.put(m, s.ctx.Done(), nil) {
		return status.FromContextError(s.ctx.Err()).Err()
	}
	return nil
}

func (s serverStream) RecvMsg(v any) error {
	m, got := s.requests.take(s.ctx.Done())
	switch got {
	case stopped:
		return status.FromContextError(s.ctx.Err()).Err()
	case closed:
		return io.EOF
	}
	return m.decode(v)
}
