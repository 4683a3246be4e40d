package rules

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/eval"
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

// requestData are the objects of a request, decoded.
type requestData struct {
	token        map[string]any
	parameters   object
	subscription object
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
	switch s.name {
	case plan.UserID:
		return jsonValue(d.token["sub"])
	case plan.Token:
		return jsonValue(map[string]any(nonNil(d.token)))
	case plan.TokenParameters:
		return jsonValue(d.tokenParameters()[s.key])
	case plan.Parameters:
		return d.parameters.slot(s)
	case plan.SubscriptionArgs:
		return d.subscription.slot(s)
	}
	return model.Value{}
}

func nonNil(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// tokenParameters are the token's parameters with user_id, which is always sub.
func (d *requestData) tokenParameters() map[string]any {
	out := map[string]any{}
	if p, ok := d.token["parameters"].(map[string]any); ok {
		for k, v := range p {
			out[k] = v
		}
	}
	out["user_id"] = d.token["sub"]
	return out
}

// object is a JSON object that keeps the order of its members. Null stands for
// none: all of its members are NULL, and it is itself.
type object struct {
	null   bool
	keys   []string
	values map[string]any
}

func (o object) slot(s requestSlot) model.Value {
	switch {
	case s.has:
		return jsonValue(o.values[s.key])
	case o.null:
		return model.NullValue
	}
	return jsonValue(o)
}

// parseObject reads the parameters of a connection or subscription.
func parseObject(raw json.RawMessage) (object, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return object{}, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v, err := readJSON(d, 0)
	if err != nil {
		return object{}, err
	}
	o, ok := v.(object)
	if !ok {
		return object{}, fmt.Errorf("parameters must be an object")
	}
	return o, nil
}

const maxRequestDepth = 100

// readJSON reads a value, objects in order.
func readJSON(d *json.Decoder, depth int) (any, error) {
	if depth > maxRequestDepth {
		return nil, fmt.Errorf("parameters are nested too deep")
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		o := object{values: map[string]any{}}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, err
			}
			v, err := readJSON(d, depth+1)
			if err != nil {
				return nil, err
			}
			key := k.(string)
			if _, ok := o.values[key]; !ok {
				o.keys = append(o.keys, key)
			}
			o.values[key] = v
		}
		_, err := d.Token()
		return o, err
	case json.Delim('['):
		a := []any{}
		for d.More() {
			v, err := readJSON(d, depth+1)
			if err != nil {
				return nil, err
			}
			a = append(a, v)
		}
		_, err := d.Token()
		return a, err
	}
	return t, nil
}

// jsonValue makes the SQL value of a decoded JSON value: objects and arrays as
// their text. Numbers are reals, as the reference decodes them.
func jsonValue(v any) model.Value {
	switch v := v.(type) {
	case nil:
		return model.NullValue
	case bool:
		return model.BoolValue(v)
	case string:
		return model.TextValue(v)
	case float64:
		return model.RealValue(v)
	case json.Number:
		f, _ := v.Float64()
		return model.RealValue(f)
	}
	return model.TextValue(string(appendJSONText(nil, v)))
}

func appendJSONText(dst []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...)
	case bool:
		if v {
			return append(dst, "true"...)
		}
		return append(dst, "false"...)
	case []any:
		dst = append(dst, '[')
		for i, e := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendJSONText(dst, e)
		}
		return append(dst, ']')
	case map[string]any:
		o := object{values: v}
		for k := range v {
			o.keys = append(o.keys, k)
		}
		sort.Strings(o.keys)
		return appendJSONText(dst, o)
	case object:
		dst = append(dst, '{')
		for i, k := range v.keys {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = model.AppendJSON(dst, model.TextValue(k))
			dst = append(dst, ':')
			dst = appendJSONText(dst, v.values[k])
		}
		return append(dst, '}')
	}
	return model.AppendJSON(dst, jsonValue(v))
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
