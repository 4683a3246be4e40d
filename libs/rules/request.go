package rules

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/eval"
	"github.com/sluicesync/sluice/libs/rules/jsontext"
	"github.com/sluicesync/sluice/libs/rules/plan"
)

// requestSlots are the values of a request that a plan reads, at their places
// in eval.Env.Request.
type requestSlots []requestSlot

type requestSlot struct {
	name string // one of plan's request values
	key  string // a member of that object, if byKey
	has  bool
}

// slot returns the place of a request value, a new one if need be.
func (s *requestSlots) slot(e *plan.Expr) int {
	want := requestSlot{name: e.Name}
	if e.Index == 1 {
		want.key, want.has = e.Value.Str(), true
	}
	for i, have := range *s {
		if have == want {
			return i
		}
	}
	*s = append(*s, want)
	return len(*s) - 1
}

// requestData are the objects of a request: jsontext.Object each. Null as
// subscription parameters stands for none.
type requestData struct {
	token, parameters, subscription jsontext.Node
}

// decode reads the objects of a request, but for its subscriptions.
func (r *Request) decode() (d requestData, err error) {
	if d.token, err = decodeObject(r.Token); err != nil {
		return d, fmt.Errorf("token: %w", err)
	}
	if d.parameters, err = decodeObject(r.Parameters); err != nil {
		return d, fmt.Errorf("connection parameters: %w", err)
	}
	return d, nil
}

// decodeObject reads a JSON object; nothing and null count as an empty one.
func decodeObject(raw json.RawMessage) (jsontext.Node, error) {
	empty := jsontext.Node{Kind: jsontext.Object}
	if len(raw) == 0 {
		return empty, nil
	}
	n, err := jsontext.ParseHost(string(raw))
	switch {
	case err != nil:
		return empty, err
	case n.Kind == jsontext.Null:
		return empty, nil
	case n.Kind != jsontext.Object:
		return empty, errors.New("not a JSON object")
	}
	return n, nil
}

// values computes the slots for one subscription.
func (s requestSlots) values(d *requestData) []model.Value {
	out := make([]model.Value, len(s))
	for i, slot := range s {
		out[i] = d.value(slot)
	}
	return out
}

func (d *requestData) value(s requestSlot) model.Value {
	var object jsontext.Node
	switch s.name {
	case plan.UserID:
		return member(d.token, "sub")
	case plan.TokenParameters:
		if s.key == "user_id" {
			return member(d.token, "sub")
		}
		object, _ = d.token.Get("parameters")
	case plan.Token:
		object = d.token
	case plan.Parameters:
		object = d.parameters
	case plan.SubscriptionArgs:
		object = d.subscription
	}
	if s.has {
		return member(object, s.key)
	}
	return object.SQL()
}

// member is the value of a member of an object, NULL if it has none or is none.
func member(object jsontext.Node, key string) model.Value {
	if object.Kind != jsontext.Object {
		return model.NullValue
	}
	n, _ := object.Get(key)
	return n.SQL()
}

// requestBinder finds request values in their slots, and the outputs of steps
// in the row that joins them.
func (p *Plan) requestBinder(offsets []int) plan.Binder {
	return plan.Binder{Options: p.language, Leaf: func(e *plan.Expr) eval.Expr {
		switch e.Op {
		case plan.Request:
			return eval.Request(p.slots.slot(e))
		case plan.Step:
			return eval.Column(offsets[e.Index] + e.Index2)
		}
		return eval.Const(model.Value{})
	}}
}
