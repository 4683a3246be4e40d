package rules

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/plan"
)

// CustomCheckpoints tells whether the config has events that carry write
// checkpoints: then none are handed out.
func (p *Plan) CustomCheckpoints() bool {
	return slices.ContainsFunc(p.plan.Events, func(e plan.Event) bool { return plan.CarriesCheckpoints(e.Name) })
}

var errCheckpoint = errors.New("no write checkpoint")

// Checkpoint returns the write checkpoint that e carries; ok is false if events
// of its name carry none.
func (e *Event) Checkpoint() (c model.CustomCheckpoint, ok bool, err error) {
	if !plan.CarriesCheckpoints(e.Name) {
		return c, false, nil
	}
	if e.Err != nil {
		return c, true, e.Err
	}
	user, err := e.name(plan.CheckpointUser)
	if err != nil {
		return c, true, err
	}
	client, err := e.name(plan.CheckpointClient)
	if err != nil {
		return c, true, err
	}
	id, ok := number(e.value(plan.CheckpointNumber))
	if !ok {
		return c, true, fmt.Errorf("%w: checkpoint is not a number from 1 to 2^63-1", errCheckpoint)
	}
	return model.CustomCheckpoint{UserKey: user + "/" + client, ID: id, Requested: e.Name == plan.CheckpointRequests}, true, nil
}

func (e *Event) value(column string) model.Value {
	if i := slices.Index(e.Columns, column); i >= 0 {
		return e.Values[i]
	}
	return model.Value{}
}

// name is a column's text, or integer as text.
func (e *Event) name(column string) (string, error) {
	switch v := e.value(column); v.Kind() {
	case model.Text:
		if v.Str() != "" {
			return v.Str(), nil
		}
	case model.Integer:
		return strconv.FormatInt(v.Int(), 10), nil
	}
	return "", fmt.Errorf("%w: %s is neither a text nor an integer, or empty", errCheckpoint, column)
}

// number is an integer, also as a text: the form of a numeric column.
func number(v model.Value) (id uint64, ok bool) {
	switch v.Kind() {
	case model.Integer:
		return uint64(v.Int()), v.Int() > 0
	case model.Text:
		n, err := strconv.ParseInt(v.Str(), 10, 64)
		return uint64(n), err == nil && n > 0
	}
	return 0, false
}
