package conformance

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
)

type lineSet map[int]bool

func (s lineSet) list() []int {
	var out []int
	for l := range s {
		out = append(out, l)
	}
	sort.Ints(out)
	return out
}

func (s lineSet) equal(t lineSet) bool { return fmt.Sprint(s.list()) == fmt.Sprint(t.list()) }

// has tells whether t is a part of s.
func (s lineSet) has(t lineSet) bool {
	for l := range t {
		if !s[l] {
			return false
		}
	}
	return true
}

// multiset counts texts.
type multiset map[string]int

func (m multiset) add(s string) { m[s]++ }

// diff says how m differs from want, "" if it does not.
func (m multiset) diff(want multiset) string {
	var out []string
	for k, n := range m {
		if w := want[k]; n != w {
			out = append(out, fmt.Sprintf("%s ×%d, expected ×%d", k, n, w))
		}
	}
	for k, w := range want {
		if m[k] == 0 {
			out = append(out, fmt.Sprintf("%s ×0, expected ×%d", k, w))
		}
	}
	sort.Strings(out)
	return strings.Join(out, "; ")
}

// canonical rewrites JSON text so that the order of keys does not matter,
// numbers as they are written.
func canonical(data string) string {
	var o ordered
	if err := json.Unmarshal([]byte(data), &o); err != nil {
		return "invalid JSON: " + data
	}
	sort.Slice(o, func(i, j int) bool { return o[i].key < o[j].key })
	var b strings.Builder
	for _, m := range o {
		fmt.Fprintf(&b, "%q:%s,", m.key, m.value)
	}
	return b.String()
}

// puts says which data each row (table and id) may have: several if the
// reference puts it several times into one bucket, of which the last counts.
type puts map[string]map[string]bool

func (p puts) add(table, id, data string) {
	k := table + "/" + id
	if p[k] == nil {
		p[k] = map[string]bool{}
	}
	p[k][data] = true
}

func (p puts) diff(want puts, several bool) string {
	var out []string
	for k, w := range want {
		for d := range w {
			if !p[k][d] && (!several || len(p[k]) == 0) {
				out = append(out, "missing "+k+" "+d)
			}
		}
	}
	for k, g := range p {
		for d := range g {
			if !want[k][d] {
				out = append(out, "unexpected "+k+" "+d)
			}
		}
	}
	sort.Strings(out)
	return strings.Join(out, "; ")
}

// several tells whether a row is put twice into one bucket with different data.
func several(data []Put) bool {
	seen := map[string]string{}
	for _, p := range data {
		k := p.Bucket + "\x00" + p.Table + "\x00" + p.ID
		if d, ok := seen[k]; ok && d != p.Data {
			return true
		}
		seen[k] = p.Data
	}
	return false
}

// row compares level 2, and level 5 of the row's buckets.
func (c *runner) row(i int, e evaluated, want ExpectRow) {
	if c.disputed[i] {
		c.Report.check(c.area, c.v.Name, RowData, "", "disputed row")
		return
	}
	got, wanted := puts{}, puts{}
	for _, p := range e.result.Puts {
		got.add(p.ObjectType, p.ObjectID, canonical(p.Data))
	}
	for _, p := range want.Data {
		wanted.add(p.Table, p.ID, canonical(p.Data))
	}
	errs := e.failed
	for _, err := range e.result.Errors {
		if !err.Parameters {
			errs += err.Err.Error()
		}
	}
	switch d := got.diff(wanted, several(want.Data)); {
	case d != "":
		c.check(RowData, "row %d: %s (errors: %s)", i, d, errs)
	case (errs != "") != (len(want.Errors) > 0):
		c.check(RowData, "row %d: error %q, expected %v", i, errs, want.Errors)
	default:
		c.check(RowData, "")
	}
	c.record(i, e, want)
	c.events(i, e, want)
	c.bucketIDs(i, e, want)
}

// bucketIDs compares bucket ids and the exact bytes of a row.
func (c *runner) bucketIDs(i int, e evaluated, want ExpectRow) {
	got, wanted := multiset{}, multiset{}
	exact := puts{}
	for _, p := range want.Data {
		wanted[c.id(p.Bucket)+" "+p.Table+"/"+p.ID] = 1
		exact.add(c.id(p.Bucket)+" "+p.Table, p.ID, p.Data)
	}
	for _, p := range e.result.Puts {
		k := c.id(p.Bucket) + " " + p.ObjectType
		got[k+"/"+p.ObjectID] = 1
		if ds := exact[k+"/"+p.ObjectID]; ds != nil && !ds[p.Data] {
			c.check(BucketIDs, "row %d: %s, expected one of %v", i, p.Data, ds)
			return
		}
	}
	c.compare(BucketIDs, fmt.Sprintf("row %d", i), got, wanted)
}

// id is a bucket id for level 5: in edition 3 the order of parameters is
// free.
func (c *runner) id(id string) string {
	open := strings.IndexByte(id, '[')
	if open < 0 || !c.edition3() {
		return id
	}
	var params []json.RawMessage
	if json.Unmarshal([]byte(id[open:]), &params) != nil {
		return id
	}
	sort.Slice(params, func(i, j int) bool { return string(params[i]) < string(params[j]) })
	b, err := json.Marshal(params)
	if err != nil {
		return id
	}
	return id[:open] + string(b)
}

func (c *runner) edition3() bool { return strings.Contains(c.v.Config, "edition: 3") }

// record compares the values after conversion.
func (c *runner) record(i int, e evaluated, want ExpectRow) {
	if want.SQLiteRecord == nil || e.failed != "" {
		return
	}
	for j, m := range want.SQLiteRecord {
		v, err := decodeValue(m.value, model.ValueOptions{})
		switch {
		case err != nil:
			c.check(RowData, "row %d: %s cannot be read: %v", i, m.key, err)
			return
		case j >= len(e.row) || e.table.Columns[j].Name != m.key || !sameSource(v, e.row[j]):
			c.check(RowData, "row %d: column %s is not as recorded: %s", i, m.key, m.value)
			return
		}
	}
	c.check(RowData, "")
}

func (c *runner) events(i int, e evaluated, want ExpectRow) {
	if want.Events == nil && e.result.Events == nil {
		return
	}
	got, wanted := multiset{}, multiset{}
	for _, ev := range e.result.Events {
		got.add(fmt.Sprintf("%s %s %v", ev.Name, ev.Data, ev.Err != nil))
	}
	for _, ev := range want.Events {
		wanted.add(fmt.Sprintf("%s %s %v", ev.Event, ev.Data, ev.Error != nil))
	}
	c.compare(RowData, fmt.Sprintf("events of row %d", i), got, wanted)
}

// grouping compares which rows share buckets, whatever these are called.
func (c *runner) grouping() {
	if len(c.v.Expect.Rows) == 0 {
		return
	}
	got, wanted := map[string]multiset{}, map[string]multiset{}
	add := func(m map[string]multiset, bucket, entry string) {
		if m[bucket] == nil {
			m[bucket] = multiset{}
		}
		m[bucket][entry] = 1
	}
	for i, e := range c.rows {
		if c.disputed[i] || i >= len(c.v.Expect.Rows) {
			continue
		}
		for _, p := range e.result.Puts {
			add(got, p.Bucket, fmt.Sprintf("%d:%s/%s", i, p.ObjectType, p.ObjectID))
		}
		for _, p := range c.v.Expect.Rows[i].Data {
			add(wanted, p.Bucket, fmt.Sprintf("%d:%s/%s", i, p.Table, p.ID))
		}
	}
	c.compare(Buckets, "rows sharing buckets", groups(got), groups(wanted))
}

func groups(m map[string]multiset) multiset {
	out := multiset{}
	for _, entries := range m {
		var keys []string
		for k := range entries {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		out.add(strings.Join(keys, ","))
	}
	return out
}

// request compares levels 3 to 5 of one request.
func (c *runner) request(i int, q Request, want ExpectRequest) {
	r := rules.Request{Token: q.Token, Parameters: q.ConnectionParameters, IncludeDefaults: q.IncludeDefaults == nil || *q.IncludeDefaults}
	for _, s := range q.Subscriptions {
		r.Subscriptions = append(r.Subscriptions, rules.Subscription{Stream: s.Stream, Parameters: s.Parameters, Priority: s.Priority})
	}
	querier, err := c.plan.Querier(r)
	var got *rules.Buckets
	if err == nil {
		got, err = querier.Resolve(func(keys []string) ([][]string, error) {
			out := make([][]string, len(keys))
			for i, k := range keys {
				out[i] = c.lookups[k]
			}
			return out, nil
		})
	}
	failed := err != nil || want.Fails && len(got.Errors) > 0
	if failed || want.Fails {
		if failed == want.Fails {
			c.check(Requests, "")
		} else {
			c.check(Requests, "request %d: error %v, expected failure %v", i, err, want.Fails)
		}
		return
	}
	c.synced(i, got, want)
	gotErrors, wantErrors := multiset{}, multiset{}
	for _, e := range got.Errors {
		s := "default"
		if !e.Default {
			s = fmt.Sprint(e.Subscription)
		}
		gotErrors.add(e.Definition + " " + s)
	}
	for _, e := range want.Errors {
		s := "default"
		if e.Subscription != nil {
			s = fmt.Sprint(*e.Subscription)
		}
		wantErrors.add(e.Definition + " " + s)
	}
	c.compare(Requests, fmt.Sprintf("errors of request %d", i), gotErrors, wantErrors)
	c.buckets(i, got, want)
}

// synced compares what the client ends up with.
func (c *runner) synced(i int, got *rules.Buckets, want ExpectRequest) {
	in := map[string]bool{}
	for _, b := range got.Buckets {
		in[b.ID] = true
	}
	have, wanted := puts{}, puts{}
	free := map[string]bool{}
	anySeveral := false
	for j, e := range c.rows {
		if j < len(c.v.Expect.Rows) {
			anySeveral = anySeveral || several(c.v.Expect.Rows[j].Data)
		}
		for _, p := range e.result.Puts {
			switch {
			case c.disputed[j]:
				free[p.ObjectType+"/"+p.ObjectID] = true
			case in[p.Bucket]:
				have.add(p.ObjectType, p.ObjectID, p.Data)
			}
		}
		if c.disputed[j] && j < len(c.v.Expect.Rows) {
			for _, p := range c.v.Expect.Rows[j].Data {
				free[p.Table+"/"+p.ID] = true
			}
		}
	}
	for _, p := range want.Synced {
		wanted.add(p.Table, p.ID, p.Data)
	}
	for k := range free {
		delete(have, k)
		delete(wanted, k)
	}
	if d := have.diff(wanted, anySeveral); d != "" {
		c.check(Requests, "request %d: %s", i, d)
	} else {
		c.check(Requests, "")
	}
}

func (c *runner) buckets(i int, got *rules.Buckets, want ExpectRequest) {
	ours, theirs := multiset{}, multiset{}
	ids, wantIDs := multiset{}, multiset{}
	for _, b := range got.Buckets {
		var reasons []string
		for _, r := range b.Reasons {
			if r.Default {
				reasons = append(reasons, "default")
			} else {
				reasons = append(reasons, fmt.Sprint(r.Index))
			}
		}
		sort.Strings(reasons)
		ours.add(fmt.Sprintf("priority %d %s %v", b.Priority, b.Definition, reasons))
		ids.add(c.id(b.ID))
	}
	for _, b := range want.Buckets {
		var reasons []string
		for _, r := range b.Reasons {
			reasons = append(reasons, fmt.Sprint(r))
		}
		sort.Strings(reasons)
		theirs.add(fmt.Sprintf("priority %d %s %v", b.Priority, b.Definition, reasons))
		wantIDs.add(c.id(b.Bucket))
	}
	c.compare(Buckets, fmt.Sprintf("buckets of request %d", i), ours, theirs)
	c.compare(BucketIDs, fmt.Sprintf("buckets of request %d", i), ids, wantIDs)
}
