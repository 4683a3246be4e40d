package rules

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/sluicesync/sluice/libs/model"
)

// Parts are what the plan makes of rows: sets of buckets, indexes, and events;
// as texts in order, each once. A part of two plans is made alike in both, as far
// as they convert the source's values alike. A config whose parts are all among
// those of others can be served from the data of the others (see Over).
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

// PartTables are the tables that each of Parts reads: none for events, which
// cannot be made for rows that are there already.
func (p *Plan) PartTables() [][]model.TablePattern {
	parts := p.Parts()
	tables := make([][]model.TablePattern, len(parts))
	add := func(part string, t model.TablePattern) {
		if i, _ := slices.BinarySearch(parts, part); !slices.Contains(tables[i], t) {
			tables[i] = append(tables[i], t)
		}
	}
	for i := range p.plan.Sources {
		for j := range p.plan.Sources[i].Rows {
			add(p.sourcePart(i), p.plan.Sources[i].Rows[j].Table)
		}
	}
	for i := range p.plan.Indexes {
		add(p.indexPart(i), p.plan.Indexes[i].Table)
	}
	return tables
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

// Less returns p without what others make: for rows, it makes only the parts that
// none of the others has, and no events.
func (p *Plan) Less(others ...*Plan) *Plan {
	c := *p
	c.made = map[string]bool{}
	for _, o := range others {
		for _, part := range o.Parts() {
			c.made[part] = true
		}
	}
	return &c
}

// Over returns p for requests, over the data that others make of rows, a part by
// the first that has it; all must be of one version. ok is false if none has one
// of p's parts, or one converts values in another way.
func (p *Plan) Over(others ...*Plan) (over *Plan, ok bool) {
	names := map[string]string{} // what a part's data begins with
	for _, o := range others {
		if p.values != o.values {
			return nil, false
		}
		own := map[string]string{} // of two like indexes the last one is read
		for i := range o.plan.Sources {
			own[o.sourcePart(i)] = o.bucketPrefix(i)
		}
		for i := range o.plan.Indexes {
			own[o.indexPart(i)] = o.lookupPrefix(i)
		}
		if len(o.plan.Events) > 0 {
			own[o.part("events", []byte(o.eventKey()))] = ""
		}
		for part, name := range own {
			if _, made := names[part]; !made {
				names[part] = name
			}
		}
	}
	for _, part := range p.Parts() {
		if _, made := names[part]; !made {
			return nil, false
		}
	}
	c := *p
	c.buckets, c.lookups = make([]string, len(p.plan.Sources)), make([]string, len(p.plan.Indexes))
	for i := range c.buckets {
		c.buckets[i] = names[p.sourcePart(i)]
	}
	for i := range c.lookups {
		c.lookups[i] = names[p.indexPart(i)]
	}
	c.bindQueriers()
	return &c, true
}
