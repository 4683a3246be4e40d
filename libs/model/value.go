package model

import (
	"math"
	"strconv"
)

// Kind is the storage class of a Value, in SQLite's sense, and besides: Absent
// for a column that a row does not have (or whose unchanged TOAST value the
// source did not send), BigInteger for an integer beyond int64.
type Kind uint8

const (
	Absent Kind = iota
	Null
	Integer
	Real
	Text
	Blob
	BigInteger
)

func (k Kind) String() string {
	switch k {
	case Absent:
		return "absent"
	case Null:
		return "null"
	case Integer, BigInteger:
		return "integer"
	case Real:
		return "real"
	case Text:
		return "text"
	case Blob:
		return "blob"
	}
	return "Kind(" + strconv.Itoa(int(k)) + ")"
}

// Value is one SQLite value. It is immutable and cheap to copy; the zero Value
// is Absent. Text is UTF-8 (lone surrogates in WTF-8: three bytes each), so a
// Go string holds text and blobs alike, and may share memory with the message
// that it was decoded from.
type Value struct {
	kind Kind
	bits uint64 // Integer: int64 bits; Real: IEEE 754 bits
	text string // Text, Blob: the bytes; BigInteger: decimal digits with sign
}

// NullValue is SQL NULL.
var NullValue = Value{kind: Null}

// IntegerValue returns an INTEGER.
func IntegerValue(i int64) Value { return Value{kind: Integer, bits: uint64(i)} }

// RealValue returns a REAL; NaN and infinities are kept as they are.
func RealValue(f float64) Value { return Value{kind: Real, bits: math.Float64bits(f)} }

// TextValue returns a TEXT.
func TextValue(s string) Value { return Value{kind: Text, text: s} }

// BlobValue returns a BLOB whose bytes are those of b.
func BlobValue(b string) Value { return Value{kind: Blob, text: b} }

// BoolValue returns 1 or 0.
func BoolValue(b bool) Value {
	if b {
		return IntegerValue(1)
	}
	return IntegerValue(0)
}

// BigIntegerValue returns an INTEGER beyond int64, given in decimal digits.
func BigIntegerValue(digits string) Value { return Value{kind: BigInteger, text: digits} }

// Kind returns the storage class.
func (v Value) Kind() Kind { return v.kind }

// IsNull reports whether v is NULL or Absent, which expressions read alike.
func (v Value) IsNull() bool { return v.kind <= Null }

// Int returns the value of an Integer.
func (v Value) Int() int64 { return int64(v.bits) }

// Float returns the value of a Real.
func (v Value) Float() float64 { return math.Float64frombits(v.bits) }

// Str returns the bytes of a Text or Blob, the digits of a BigInteger.
func (v Value) Str() string { return v.text }
