package wire

import (
	"encoding/binary"
	"math"

	"github.com/sluicesync/sluice/libs/model"
)

// AppendRow appends the row form of row: the number of values, then for each
// its kind and what the kind needs.
func AppendRow(dst []byte, row []model.Value) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(row)))
	for i := range row {
		v := &row[i]
		k := v.Kind()
		dst = append(dst, byte(k))
		switch k {
		case model.Integer:
			dst = binary.AppendVarint(dst, v.Int())
		case model.Real:
			dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(v.Float()))
		case model.Text, model.Blob, model.BigInteger:
			dst = appendText(dst, v.Str())
		}
	}
	return dst
}

// Row appends the values of a row form to dst. They share memory with src.
func Row(src string, dst []model.Value) ([]model.Value, error) {
	r := reader{s: src}
	dst = r.row(dst)
	return dst, r.end()
}

// row appends one row to dst, whose capacity, if set, bounds nothing.
func (r *reader) row(dst []model.Value) []model.Value {
	n := r.count(1)
	if cap(dst)-len(dst) < n {
		dst = append(make([]model.Value, 0, len(dst)+n), dst...)
	}
	return r.values(dst, n)
}

// values appends n values.
func (r *reader) values(dst []model.Value, n int) []model.Value {
	for range n {
		switch k := model.Kind(r.byte()); k {
		case model.Absent:
			dst = append(dst, model.Value{})
		case model.Null:
			dst = append(dst, model.NullValue)
		case model.Integer:
			dst = append(dst, model.IntegerValue(r.varint()))
		case model.Real:
			dst = append(dst, model.RealValue(r.float()))
		case model.Text:
			dst = append(dst, model.TextValue(r.text()))
		case model.Blob:
			dst = append(dst, model.BlobValue(r.text()))
		case model.BigInteger:
			dst = append(dst, model.BigIntegerValue(r.text()))
		default:
			r.fail("unknown kind of value")
		}
		if r.err != nil {
			return dst
		}
	}
	return dst
}
