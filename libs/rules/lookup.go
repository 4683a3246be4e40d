package rules

import (
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/eval"
)

// resolution is one call of Resolve.
type resolution struct {
	*Querier
	lookup func(keys []string) ([][]string, error)
	work   []*work
	found  map[string]*lookupResult // by lookup key
	out    *Buckets
	perDef map[string]int // parameter rows
}

// work is a run during a resolution.
type work struct {
	run    *run
	parts  []part
	failed bool
}

// lookupResult is what the index has under a key, decoded once.
type lookupResult struct {
	values  []string
	decoded [][]model.Value
	done    bool
}

// stage advances every part by its next lookup, with one call for all keys
// that were not looked up yet. It reports whether there was anything to do.
func (r *resolution) stage() (bool, error) {
	var keys []string
	any := false
	wanted := map[*part][]string{}
	for _, w := range r.work {
		for i := range w.parts {
			p := &w.parts[i]
			if w.failed || p.done() {
				continue
			}
			any = true
			ks, err := p.keys()
			if err != nil {
				r.fail(w, err)
				break
			}
			wanted[p] = ks
			for _, k := range ks {
				if k != "" && r.found[k] == nil {
					r.found[k] = &lookupResult{}
					keys = append(keys, k)
				}
			}
		}
	}
	if !any {
		return false, nil
	}
	if err := r.fetch(keys); err != nil {
		return false, err
	}
	for _, w := range r.work {
		for i := range w.parts {
			p := &w.parts[i]
			if ks, ok := wanted[p]; ok && !w.failed {
				if err := r.advance(w, p, ks); err != nil {
					return false, err
				}
			}
		}
	}
	err := checkLimit("Too many parameter query results: %d (limit of %d)", r.out.Results, r.max.results, r.perDef)
	return true, err
}

func (r *resolution) fail(w *work, err error) {
	w.failed = true
	r.out.Errors = append(r.out.Errors, subscriptionError(r.plan, w.run, err))
}

func (r *resolution) fetch(keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	values, err := r.lookup(keys)
	if err != nil {
		return fmt.Errorf("look up parameters: %w", err)
	}
	if len(values) != len(keys) {
		return fmt.Errorf("look up parameters: %d answers to %d keys", len(values), len(keys))
	}
	for i, k := range keys {
		r.found[k].values = values[i]
	}
	r.out.Lookups = append(r.out.Lookups, keys...)
	return nil
}

// keys returns the lookup key of each partial result; "" if it has none.
func (p *part) keys() ([]string, error) {
	s := &p.q.steps[p.step]
	env := eval.Env{Request: p.request}
	out := make([]string, len(p.rows))
	var buf []byte
next:
	for i, row := range p.rows {
		env.Row = row
		buf = append(buf[:0], s.prefix...)
		for j, in := range s.inputs {
			v, err := in(&env)
			if err != nil {
				return nil, err
			}
			if j > 0 {
				buf = append(buf, ',')
			}
			ok := true
			switch {
			case v.IsNull():
				ok = false // null equals nothing
			case s.raw[j]:
				buf, ok = appendRaw(buf, v)
			default:
				buf, ok = appendFragment(buf, v)
			}
			if !ok {
				continue next
			}
		}
		out[i] = string(append(buf, ']'))
	}
	return out, nil
}

// advance joins what was found under the keys, and goes on to the next lookup.
func (r *resolution) advance(w *work, p *part, keys []string) error {
	s := &p.q.steps[p.step]
	var out [][]model.Value
	for i, row := range p.rows {
		if keys[i] == "" {
			continue
		}
		f := r.found[keys[i]]
		if !f.done {
			f.done = true
			d := entryDecoder{names: s.names}
			for _, v := range f.values {
				if err := d.decode(v); err != nil {
					return err
				}
			}
			f.decoded = d.rows
			r.out.Results += len(f.decoded)
			if r.perDef == nil {
				r.perDef = map[string]int{}
			}
			r.perDef[r.plan.definitions[p.q.definition].Name] += len(f.decoded)
		}
		var err error
		if out, err = p.join(out, row, f.decoded); err != nil {
			r.fail(w, err)
			return nil
		}
	}
	p.rows = p.narrow(out)
	p.step++
	for !p.done() && p.q.steps[p.step].each != nil {
		if err := p.each(); err != nil {
			r.fail(w, err)
			return nil
		}
	}
	return nil
}

// buckets makes the buckets of all finished parts, each once.
func (r *resolution) buckets() error {
	index := map[string]int{}
	perDef := map[string]int{}
	var buf []byte
	for _, w := range r.work {
		if w.failed {
			continue
		}
		// A run gives its buckets only if all of it can be evaluated.
		var ids []bucketID
		for i := range w.parts {
			var err error
			if ids, buf, err = w.parts[i].ids(ids, buf); err != nil {
				r.fail(w, err)
				break
			}
		}
		if w.failed {
			continue
		}
		for _, id := range ids {
			i, ok := index[id.text]
			if !ok {
				i = len(r.out.Buckets)
				index[id.text] = i
				name := r.plan.definitions[w.run.definition].Name
				r.out.Buckets = append(r.out.Buckets, Bucket{
					ID: id.text, Priority: 3, Definition: name, Dynamic: true,
				})
				perDef[name]++
			}
			b := &r.out.Buckets[i]
			b.Dynamic = b.Dynamic && id.q.dynamic
			priority := id.q.priority
			if w.run.priority != nil {
				priority = *w.run.priority
			}
			b.Priority = min(b.Priority, priority)
			for range id.times {
				b.Reasons = append(b.Reasons, w.run.reason)
			}
		}
	}
	return checkLimit("Too many buckets: %d (limit of %d)", len(r.out.Buckets), r.max.buckets, perDef)
}

// bucketID is a bucket that a part gives, and how many times.
type bucketID struct {
	text  string
	q     *boundQuerier
	times int
}

// ids appends the bucket ids of the part's results.
func (p *part) ids(out []bucketID, buf []byte) ([]bucketID, []byte, error) {
	env := eval.Env{Request: p.request}
	seen := map[string]int{}
next:
	for _, row := range p.rows {
		env.Row = row
		buf = append(buf[:0], p.q.prefix...)
		extra := 0
		for i, sources := range p.q.params {
			if i > 0 {
				buf = append(buf, ',')
			}
			start := len(buf)
			for j, src := range sources {
				v, err := src(&env)
				if err != nil {
					return nil, buf, err
				}
				if v.IsNull() && (!p.q.nullKeys[i] || v.Kind() == model.Absent) {
					continue next
				}
				here := len(buf)
				var ok bool
				if p.q.raw[i] {
					buf, ok = appendRaw(buf, v)
				} else {
					buf, ok = appendFragment(buf, v)
				}
				if !ok {
					continue next
				}
				if j > 0 {
					// All sources of a key must agree.
					if string(buf[start:here]) != string(buf[here:]) {
						continue next
					}
					buf = buf[:here]
					extra++
				}
			}
		}
		buf = append(buf, ']')
		if i, ok := seen[string(buf)]; ok {
			out[i].times++
			continue
		}
		id := string(buf)
		seen[id] = len(out)
		// Each further source of a key is one more reason, as recorded.
		out = append(out, bucketID{id, p.q, 1 + extra})
	}
	return out, buf, nil
}
