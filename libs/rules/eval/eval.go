package eval

import (
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// Options are the compatibility options of a sync config that concern
// expressions (spec/03 §2).
type Options struct {
	Edition          int // 1, 2 or 3; 3 is the new engine
	FixedJSONExtract bool
}

// Env is what an expression reads. Fields that no expression of a plan reads
// may be empty; an offset beyond the end reads as Absent.
type Env struct {
	Row     []model.Value // the source row's columns, in the order that the caller resolved
	Request []model.Value // request values, likewise
	Each    []EachRow     // the current row of each table-valued function
}

// Expr computes a value. Absent is what a missing column gives: expressions
// read it as NULL, and an output column that is Absent is left out.
type Expr func(*Env) (model.Value, error)

// Error is a value that cannot be computed: the row is skipped for that query,
// or the subscription reported, and everything else goes on.
type Error = value.Error

// Const returns v always.
func Const(v model.Value) Expr {
	return func(*Env) (model.Value, error) { return v, nil }
}

// Column reads Env.Row[i].
func Column(i int) Expr {
	return func(e *Env) (model.Value, error) {
		if uint(i) < uint(len(e.Row)) {
			return e.Row[i], nil
		}
		return model.Value{}, nil
	}
}

// Request reads Env.Request[i].
func Request(i int) Expr {
	return func(e *Env) (model.Value, error) {
		if uint(i) < uint(len(e.Request)) {
			return e.Request[i], nil
		}
		return model.Value{}, nil
	}
}

// EachRow is one row that json_each gives.
type EachRow struct {
	Key   model.Value // integer index or text key; NULL for a scalar document
	Value model.Value
}

// EachValue reads the column "value" of the i-th table-valued function.
func EachValue(i int) Expr {
	return func(e *Env) (model.Value, error) {
		if uint(i) < uint(len(e.Each)) {
			return e.Each[i].Value, nil
		}
		return model.Value{}, nil
	}
}

// EachKey reads the column "key" of the i-th table-valued function.
func EachKey(i int) Expr {
	return func(e *Env) (model.Value, error) {
		if uint(i) < uint(len(e.Each)) {
			return e.Each[i].Key, nil
		}
		return model.Value{}, nil
	}
}
