// Package record is the form in which stores keep what is known of a source
// row, and the parts that such forms are made of: numbers as varints, texts
// behind their length.
//
// The form is on disks: what was stored is read, byte for byte (TestForm). Hostile
// bytes are an error that wraps store.ErrDamaged (FuzzRead).
package record

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// ErrCorrupt: a value is not what was written.
var ErrCorrupt = fmt.Errorf("a value cannot be read: %w", store.ErrDamaged)

// mark begins a record that has its log and digest, as no number of memberships
// does. One that was stored before there were any has neither.
const mark = "\x80\x00"

// Append appends a record: the mark, its log and digest, if it has them, its
// memberships, each with its object type and id if they are not those of the one
// before, its lookups, its source (up to the end).
func Append(dst []byte, rec *ledger.Record) []byte {
	var typ, id string
	if rec.Log != 0 || rec.Digest != 0 {
		dst = append(dst, mark...)
		dst = binary.AppendUvarint(dst, uint64(rec.Log))
		dst = binary.LittleEndian.AppendUint64(dst, rec.Digest)
	}
	dst = binary.AppendUvarint(dst, uint64(len(rec.Buckets)))
	for i := range rec.Buckets {
		m := &rec.Buckets[i]
		dst = AppendText(dst, m.Bucket)
		dst = appendAgain(dst, m.ObjectType, &typ)
		dst = appendAgain(dst, m.ObjectID, &id)
	}
	dst = binary.AppendUvarint(dst, uint64(len(rec.Lookups)))
	for i := range rec.Lookups {
		dst = AppendText(dst, rec.Lookups[i].Lookup)
		dst = AppendText(dst, rec.Lookups[i].Values)
	}
	return append(dst, rec.Source...)
}

// Read decodes a record that shares memory with value.
func Read(value string) (*ledger.Record, error) {
	r := Reader{value: value}
	rec := &ledger.Record{}
	var typ, id string
	if rest, ok := strings.CutPrefix(r.value, mark); ok {
		r.value = rest
		log := r.Uvarint()
		digest := r.Bytes(8)
		if r.bad || log > math.MaxUint32 {
			return nil, ErrCorrupt
		}
		rec.Log, rec.Digest = uint32(log), binary.LittleEndian.Uint64([]byte(digest))
	}
	if n := r.Uvarint(); n > uint64(len(r.value)) {
		return nil, ErrCorrupt
	} else if n > 0 {
		rec.Buckets = make([]ledger.Membership, 0, min(n, 1024))
		for range n {
			rec.Buckets = append(rec.Buckets, ledger.Membership{Bucket: r.Text(), ObjectType: r.again(&typ), ObjectID: r.again(&id)})
			if r.bad {
				return nil, ErrCorrupt
			}
		}
	}
	if n := r.Uvarint(); n > uint64(len(r.value)) {
		return nil, ErrCorrupt
	} else if n > 0 {
		rec.Lookups = make([]model.ParameterEntry, 0, min(n, 1024))
		for range n {
			rec.Lookups = append(rec.Lookups, model.ParameterEntry{Lookup: r.Text(), Values: r.Text()})
			if r.bad {
				return nil, ErrCorrupt
			}
		}
	}
	rec.Source = r.Rest()
	return rec, r.Err()
}

// Reader takes a value apart; the first fault sticks. What it returns shares
// memory with the value.
type Reader struct {
	value string // what is left
	bad   bool
}

// NewReader returns a reader of value.
func NewReader(value string) Reader { return Reader{value: value} }

// Uvarint reads a number.
func (r *Reader) Uvarint() uint64 {
	var x uint64
	for shift := uint(0); shift < 64; shift += 7 {
		if len(r.value) == 0 {
			break
		}
		b := r.value[0]
		r.value = r.value[1:]
		if b < 0x80 {
			if shift == 63 && b > 1 {
				break
			}
			return x | uint64(b)<<shift
		}
		x |= uint64(b&0x7f) << shift
	}
	r.bad = true
	return 0
}

// Bytes reads n bytes.
func (r *Reader) Bytes(n uint64) string {
	if n > uint64(len(r.value)) {
		r.bad = true
		return ""
	}
	s := r.value[:n]
	r.value = r.value[n:]
	return s
}

// Text reads what AppendText has appended.
func (r *Reader) Text() string { return r.Bytes(r.Uvarint()) }

// Rest reads what is left.
func (r *Reader) Rest() string { return r.Bytes(uint64(len(r.value))) }

// More tells whether anything is left.
func (r *Reader) More() bool { return len(r.value) > 0 }

// Err is ErrCorrupt if the value did not have what was read.
func (r *Reader) Err() error {
	if r.bad {
		return ErrCorrupt
	}
	return nil
}

// again reads what appendAgain has appended.
func (r *Reader) again(last *string) string {
	if n := r.Uvarint(); n > 0 {
		*last = r.Bytes(n - 1)
	}
	return *last
}

// AppendText appends s behind its length.
func AppendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// appendAgain appends s, or a zero byte if it is the same as the last one.
func appendAgain(dst []byte, s string, last *string) []byte {
	if s == *last {
		return append(dst, 0)
	}
	*last = s
	return append(binary.AppendUvarint(dst, uint64(len(s))+1), s...)
}
