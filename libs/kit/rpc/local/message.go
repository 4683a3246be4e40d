package local

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// message is an encoded message on its way. The protobuf encoding, and not a
// clone, so that what cannot cross a network cannot cross here either.
type message struct {
	bytes []byte
	from  *[]byte // the pooled buffer, or nil
}

// Buffers are pooled by powers of two from minPooled on: pools[i] has those of
// 1<<i bytes. A smaller message gets its own, so that none holds much more than
// it needs.
const minPooled = 1 << 10

var pools [32]sync.Pool

func encode(v any, limit int) (message, error) {
	pm, ok := v.(proto.Message)
	if !ok {
		return message{}, status.Errorf(codes.Internal, "%T is not a message", v)
	}
	n := proto.Size(pm)
	if n > limit {
		return message{}, status.Errorf(codes.ResourceExhausted, "message of %d bytes, the limit is %d", n, limit)
	}
	var m message
	if n < minPooled {
		m.bytes = make([]byte, 0, n)
	} else {
		i := bits.Len(uint(n - 1))
		if m.from, ok = pools[i].Get().(*[]byte); !ok {
			b := make([]byte, 0, 1<<i)
			m.from = &b
		}
		m.bytes = *m.from
	}
	// The size is right: v is not changed while it is sent.
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(m.bytes, pm)
	if err != nil {
		return message{}, status.Errorf(codes.Internal, "encode %T: %v", v, err)
	}
	m.bytes = b
	return m, nil
}

// decode reads m, once, into v, which shares nothing with it.
func (m message) decode(v any) error {
	pm, ok := v.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "%T is not a message", v)
	}
	err := proto.Unmarshal(m.bytes, pm)
	if m.from != nil {
		pools[bits.Len(uint(cap(*m.from)-1))].Put(m.from)
	}
	if err != nil {
		return status.Errorf(codes.Internal, "decode %T: %v", v, err)
	}
	return nil
}

// size is what m counts for in a queue; it holds up to twice that.
func (m message) size() int { return len(m.bytes) + overhead }
