package rules

import (
	"crypto/sha256"
	"fmt"
	"slices"
)

// Parts are what the plan makes of rows: sets of buckets, indexes, and events;
// as texts in order, each once. A part of two plans is made alike in both, as far
// as they convert the source's values alike. A config whose parts are all among
// another's can be served from the data of the other (see Over).
func (p *Plan) Parts() []string {
	var all []string
	for i := range p.plan.Sources {
		all = append(all, p.sourcePart(i))
	}
	for i := range p.plan.Indexes {
		all = append(all, p.indexPart(i))
	}
	if len(p.plan.Events) > 0 {
		all = append(all, p.part("events", []byte(p.eventKey())))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (p *Plan) part(kind string, key []byte) string {
	return fmt.Sprintf("%x", sha256.Sum256(append(fmt.Appendf(nil, "%s %d %t ", kind, p.plan.Edition, p.plan.FixedJSON), key...)))
}

func (p *Plan) sourcePart(i int) string {
	s := &p.plan.Sources[i]
	b := fmt.Appendf(nil, "%q %d", s.Name, s.Keys)
	for j := range s.Rows {
		b = s.Rows[j].AppendKey(b)
	}
	return p.part("buckets", b)
}

func (p *Plan) indexPart(i int) string { return p.part("index", p.plan.Indexes[i].AppendKey(nil)) }

// Over returns p for requests, over the data that other makes of rows; both must
// be of one version. ok is false if other lacks one of p's parts, or converts
// values in another way.
func (p *Plan) Over(other *Plan) (over *Plan, ok bool) {
	all := other.Parts()
	if p.values != other.values || slices.ContainsFunc(p.Parts(), func(x string) bool { return !slices.Contains(all, x) }) {
		return nil, false
	}
	c := *p
	c.indexes = make([]int, len(p.plan.Indexes))
	number := map[string]int{}
	for i := range other.plan.Indexes {
		number[other.indexPart(i)] = i
	}
	for i := range c.indexes {
		c.indexes[i] = number[p.indexPart(i)]
	}
	c.bindQueriers()
	return &c, true
}
