package transport

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"strconv"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/reply"
)

// streamRequest is the body of a sync stream's request (spec/02 §3).
type streamRequest struct {
	positions       map[string]model.OpID
	clientID        string
	parameters      json.RawMessage
	appMetadata     map[string]string
	rawData         bool
	includeDefaults bool
	subscriptions   []rules.Subscription
}

// maxDepth bounds the nesting of a body.
const maxDepth = 100

// object is a JSON object whose fields are checked one after another; every
// problem is kept.
type object struct {
	fields   map[string]json.RawMessage
	problems *[]string
	path     string
}

func parseObject(body []byte) (object, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("{}")
	}
	if tooDeep(body) {
		return object{}, reply.NewFault(fmt.Sprintf("body is nested deeper than %d", maxDepth))
	}
	o := object{problems: new([]string)}
	if err := json.Unmarshal(body, &o.fields); err != nil || o.fields == nil {
		return object{}, reply.NewFault("body must be a JSON object")
	}
	return o, nil
}

// tooDeep looks at the nesting before anything recursive does.
func tooDeep(b []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// query adds query parameters; the body wins.
func (o object) query(q url.Values) {
	for name, values := range q {
		if _, ok := o.fields[name]; !ok && len(values) > 0 {
			text, err := json.Marshal(values[0])
			if err == nil {
				o.fields[name] = text
			}
		}
	}
}

func (o object) problem(name, must string) {
	const most = 20
	if len(*o.problems) < most {
		*o.problems = append(*o.problems, fmt.Sprintf("%s%s %s", o.path, name, must))
	}
}

func null(raw json.RawMessage) bool { return string(raw) == "null" }

// take decodes a field; required ones must be there. It reports whether into
// was set.
func (o object) take(name string, into any, must string, required bool) bool {
	raw, ok := o.fields[name]
	if !ok {
		if required {
			o.problem(name, "is required")
		}
		return false
	}
	if null(raw) || json.Unmarshal(raw, into) != nil {
		o.problem(name, must)
		return false
	}
	return true
}

func (o object) err() error {
	if len(*o.problems) > 0 {
		return reply.NewFault(*o.problems...)
	}
	return nil
}

// parseStream reads and validates the body of a sync stream.
func parseStream(body []byte, q url.Values) (*streamRequest, error) {
	o, err := parseObject(body)
	if err != nil {
		return nil, err
	}
	o.query(q)
	r := &streamRequest{includeDefaults: true}
	var buckets []struct{ Name, After *string }
	if o.take("buckets", &buckets, "must be an array of {name: string, after: string}", false) {
		r.positions = make(map[string]model.OpID, len(buckets))
		for i, b := range buckets {
			if b.Name == nil || b.After == nil {
				o.problem(fmt.Sprintf("buckets[%d]", i), "must be {name: string, after: string}")
				continue
			}
			after, err := strconv.ParseUint(*b.After, 10, 63)
			if err != nil {
				o.problem(fmt.Sprintf("buckets[%d].after", i), "must be a decimal number")
				continue
			}
			r.positions[*b.Name] = model.OpID(after)
		}
	}
	var only []string
	o.take("only", &only, "must be an array of strings", false)
	var flag bool
	o.take("include_checksum", &flag, "must be a boolean", false)
	o.take("raw_data", &r.rawData, "must be a boolean", false)
	o.take("client_id", &r.clientID, "must be a string", false)
	var parameters map[string]json.RawMessage
	if o.take("parameters", &parameters, "must be an object", false) {
		r.parameters = o.fields["parameters"]
	}
	o.take("app_metadata", &r.appMetadata, "must be an object of strings", false)
	var streams map[string]json.RawMessage
	if o.take("streams", &streams, "must be an object", false) {
		parseSubscriptions(object{fields: streams, problems: o.problems, path: "streams."}, r)
	}
	if err := o.err(); err != nil {
		return nil, err
	}
	return r, nil
}

func parseSubscriptions(o object, r *streamRequest) {
	o.take("include_defaults", &r.includeDefaults, "must be a boolean", false)
	var list []map[string]json.RawMessage
	if !o.take("subscriptions", &list, "must be an array of objects", true) {
		return
	}
	for i, fields := range list {
		s := object{fields: fields, problems: o.problems, path: fmt.Sprintf("streams.subscriptions[%d].", i)}
		if fields == nil {
			o.problem(fmt.Sprintf("subscriptions[%d]", i), "must be an object")
			continue
		}
		var sub rules.Subscription
		s.take("stream", &sub.Stream, "must be a string", true)
		raw, ok := fields["parameters"]
		var parameters map[string]json.RawMessage
		switch {
		case !ok:
			s.problem("parameters", "is required")
		case null(raw):
		case json.Unmarshal(raw, &parameters) != nil:
			s.problem("parameters", "must be an object or null")
		default:
			sub.Parameters = raw
		}
		raw, ok = fields["override_priority"]
		var priority float64
		switch {
		case !ok:
			s.problem("override_priority", "is required")
		case null(raw):
		case json.Unmarshal(raw, &priority) != nil:
			s.problem("override_priority", "must be a number or null")
		default:
			// A number that is no priority fails its subscription alone.
			p := -1
			if priority >= 0 && priority <= math.MaxInt32 && priority == math.Trunc(priority) {
				p = int(priority)
			}
			sub.Priority = &p
		}
		r.subscriptions = append(r.subscriptions, sub)
	}
}

// parseCheckpoint reads and validates the body of a checkpoint request.
func parseCheckpoint(body []byte, q url.Values) (clientID string, id uint64, err error) {
	o, err := parseObject(body)
	if err != nil {
		return "", 0, err
	}
	o.query(q)
	o.take("client_id", &clientID, "must be a string", true)
	const must = "must be a whole number from 1 to 9223372036854775807; as a string above 9007199254740991"
	raw, ok := o.fields["checkpoint_request_id"]
	switch {
	case !ok:
		o.problem("checkpoint_request_id", "is required")
	case len(raw) > 0 && raw[0] == '"':
		var text string
		if json.Unmarshal(raw, &text) == nil {
			id, err = strconv.ParseUint(text, 10, 63)
		}
		if err != nil || id == 0 {
			o.problem("checkpoint_request_id", must)
		}
	default:
		const safe = 1<<53 - 1
		var n float64
		if json.Unmarshal(raw, &n) != nil || null(raw) || n < 1 || n > safe || n != math.Trunc(n) {
			o.problem("checkpoint_request_id", must)
			break
		}
		id = uint64(n)
	}
	return clientID, id, o.err()
}
