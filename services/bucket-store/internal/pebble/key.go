package pebble

import (
	"encoding/binary"

	"github.com/sluicesync/sluice/libs/model"
)

// The first byte of a key says what it is. Numbers are big-endian, so that
// byte order is number order.
const (
	kindBucket   = 'b' // stream, bucket name: bucketState
	kindCustom   = 'c' // stream, user key: custom write checkpoints
	kindDirty    = 'd' // stream, store.Dirt descending, bucket name: nothing
	kindHead     = 'h' // stream: head
	kindCleared  = 'l' // stream: op up to which the parameter index is compacted
	kindMeta     = 'm' // name
	kindOp       = 'o' // stream, bucket number, op id: op
	kindLookup   = 'p' // stream, lookup, table, row, op id descending: values
	kindRecord   = 'r' // stream, table, row: record
	kindStream   = 's' // stream: definition
	kindProgress = 't' // stream, table: copy progress
	kindUser     = 'w' // user key: write checkpoints
)

// streamKinds are the kinds whose keys go when a stream is cleared.
var streamKinds = []byte{kindBucket, kindCustom, kindDirty, kindCleared, kindOp, kindLookup, kindRecord, kindProgress}

const (
	opKeySize    = 1 + 8 + 8 + 8
	rowKeySize   = 16 + 16
	lookupSuffix = rowKeySize + 8
)

func appendStream(dst []byte, kind byte, id model.StreamID) []byte {
	return binary.BigEndian.AppendUint64(append(dst, kind), uint64(id))
}

func streamKey(kind byte, id model.StreamID) []byte { return appendStream(nil, kind, id) }

// streamRange is all keys of a kind and stream.
func streamRange(kind byte, id model.StreamID) (lower, upper []byte) {
	return streamKey(kind, id), streamKey(kind, id+1)
}

// after is the least key greater than every key that begins with prefix; nil
// if there is none.
func after(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := append([]byte(nil), prefix[:i+1]...)
			end[i]++
			return end
		}
	}
	return nil
}

func appendBucketKey(dst []byte, id model.StreamID, bucket string) []byte {
	return append(appendStream(dst, kindBucket, id), bucket...)
}

func appendDirtyKey(dst []byte, id model.StreamID, dirt int, bucket string) []byte {
	return append(append(appendStream(dst, kindDirty, id), ^byte(dirt)), bucket...)
}

func putOpKey(dst []byte, id model.StreamID, bucket uint64, op model.OpID) {
	dst[0] = kindOp
	binary.BigEndian.PutUint64(dst[1:], uint64(id))
	binary.BigEndian.PutUint64(dst[9:], bucket)
	binary.BigEndian.PutUint64(dst[17:], uint64(op))
}

func opKey(id model.StreamID, bucket uint64, op model.OpID) []byte {
	k := make([]byte, opKeySize)
	putOpKey(k, id, bucket, op)
	return k
}

// opID is the op id of an op key.
func opID(key []byte) model.OpID { return model.OpID(binary.BigEndian.Uint64(key[opKeySize-8:])) }

func appendRecordKey(dst []byte, id model.StreamID, k model.RowKey) []byte {
	dst = appendStream(dst, kindRecord, id)
	dst = append(dst, k.Table[:]...)
	return append(dst, k.Row[:]...)
}

// appendLookupPrefix appends what all keys of one lookup begin with. The
// lookup is escaped, so that no lookup's prefix begins another's: a zero byte
// becomes 00 ff, and 00 01 ends it. Byte order stays.
func appendLookupPrefix(dst []byte, id model.StreamID, lookup string) []byte {
	dst = appendStream(dst, kindLookup, id)
	for i := 0; i < len(lookup); i++ {
		dst = append(dst, lookup[i])
		if lookup[i] == 0 {
			dst = append(dst, 0xff)
		}
	}
	return append(dst, 0, 1)
}

func appendLookupKey(dst []byte, id model.StreamID, lookup string, k model.RowKey, op model.OpID) []byte {
	dst = appendLookupPrefix(dst, id, lookup)
	dst = append(dst, k.Table[:]...)
	dst = append(dst, k.Row[:]...)
	return binary.BigEndian.AppendUint64(dst, ^uint64(op))
}

// lookupKey takes a lookup key apart: group is all but the op id.
func lookupKey(key []byte) (group []byte, op model.OpID, ok bool) {
	if len(key) < 1+8+2+lookupSuffix || key[0] != kindLookup {
		return nil, 0, false
	}
	n := len(key) - 8
	return key[:n], model.OpID(^binary.BigEndian.Uint64(key[n:])), true
}
