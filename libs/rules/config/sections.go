package config

import (
	"math"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// config reads the root map.
func (p *parser) config(root *yaml.Node, c *Config) {
	es := p.entries(root)
	// The options come first: they say how to read the rest.
	for _, e := range es {
		if e.key == "config" && p.mapping(e.node, "config") {
			p.options(e.node, &c.Options)
		}
	}
	if c.Options.SQLiteEngine && !c.Options.FixedJSONExtract {
		p.fatal("option", p.at(find(root, "config")), "unstable_sqlite_expression_engine needs fixed_json_extract")
	}
	for _, e := range es {
		switch e.key {
		case "config":
		case "bucket_definitions":
			p.mapping(e.node, e.key)
			if e.node.Kind == yaml.MappingNode {
				c.HasRules, c.RulesAt = true, p.at(e.node)
				p.buckets(e.node, c)
			}
		case "streams":
			p.mapping(e.node, e.key)
			if e.node.Kind == yaml.MappingNode {
				c.HasStreams = true
				p.streams(e.node, c)
			}
		case "with":
			if !c.Options.Compiler3() {
				p.fatal("unsupported", p.at(e.node), "with needs edition 3")
			} else {
				c.With = p.ctes(e.node)
			}
		case "event_definitions":
			if p.mapping(e.node, e.key) {
				p.events(e.node, c)
			}
		default:
			p.unknown(e, "config", "bucket_definitions", "streams", "with", "event_definitions")
		}
	}
	buckets := map[string]bool{}
	for _, b := range c.Buckets {
		buckets[b.Name.Text] = true
	}
	for _, st := range c.Streams {
		if buckets[st.Name.Text] {
			p.fatal("duplicate-definition", st.Name.At, "there is a bucket definition of this name")
		}
	}
	if !c.HasStreams && (!c.HasRules || c.Options.Compiler3()) {
		if c.Options.Compiler3() {
			p.fatal("missing-key", None, "streams are missing")
		} else {
			p.fatal("missing-key", None, "either bucket_definitions or streams must be there")
		}
	}
	if e := c.Options.Edition; e != 1 && e != 2 && e != 3 && !p.anyFatal() {
		p.fatal("edition", None, "edition must be 1, 2 or 3")
	}
}

func (p *parser) anyFatal() bool {
	for _, f := range p.findings {
		if f.Fatal {
			return true
		}
	}
	return false
}

func find(m *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	return m
}

var digits = map[string]uint8{"seconds": 1, "milliseconds": 4, "microseconds": 7, "nanoseconds": 10}

// options reads the config block.
func (p *parser) options(n *yaml.Node, o *Options) {
	es := p.entries(n)
	for _, e := range es {
		if e.key != "edition" {
			continue
		}
		if f, ok := number(e.node); ok {
			o.Edition = f
		} else {
			p.fatal("yaml-shape", p.at(e.node), "edition must be a number: 1, 2 or 3")
		}
	}
	fixed := o.Edition >= 2
	o.TimestampsISO8601, o.VersionedBucketIDs, o.FixedJSONExtract, o.CustomPostgresTypes = fixed, fixed, fixed, fixed
	precision, engine := None, None
	for _, e := range es {
		switch e.key {
		case "edition":
		case "timestamps_iso8601":
			o.TimestampsISO8601 = p.bool(e.node, e.key)
		case "versioned_bucket_ids":
			o.VersionedBucketIDs = p.bool(e.node, e.key)
		case "fixed_json_extract":
			o.FixedJSONExtract = p.bool(e.node, e.key)
		case "custom_postgres_types":
			o.CustomPostgresTypes = p.bool(e.node, e.key)
		case "unstable_sqlite_expression_engine":
			o.SQLiteEngine, engine = p.bool(e.node, e.key), p.at(e.node)
		case "timestamp_max_precision":
			d, ok := digits[e.node.Value]
			if !ok || e.node.Kind != yaml.ScalarNode {
				p.fatal("time-precision", p.at(e.node), "timestamp_max_precision must be seconds, milliseconds, microseconds or nanoseconds")
				continue
			}
			o.MaxDigits, precision = d, p.at(n)
		case "storage_version":
			p.storageVersion(e.node, o)
		default:
			p.unknown(e, "edition", "timestamps_iso8601", "versioned_bucket_ids", "fixed_json_extract",
				"custom_postgres_types", "unstable_sqlite_expression_engine", "timestamp_max_precision", "storage_version")
		}
	}
	if precision != None && !o.TimestampsISO8601 {
		p.fatal("time-precision", precision, "timestamp_max_precision needs timestamps_iso8601")
	}
	if o.SQLiteEngine && o.Edition < 3 {
		p.fatal("edition", p.at(n), "unstable_sqlite_expression_engine needs edition 3")
		o.SQLiteEngine = false
	}
	if o.SQLiteEngine {
		p.warn("sqlite-engine", engine, "unstable_sqlite_expression_engine has no effect: expressions are computed as without it")
	}
}

func (p *parser) storageVersion(n *yaml.Node, o *Options) {
	f, ok := number(n)
	switch {
	case !ok || f != 2 && f != 3:
		p.fatal("storage-version", p.at(n), "storage_version must be 2 or 3")
	case f == 3:
		p.warn("storage-version", p.at(n), "storage version 3 is unstable")
		o.StorageVersion = 3
	}
}

// priority reads a priority: an integer from 0 to 3.
func (p *parser) priority(n *yaml.Node) (int, bool) {
	if n.Kind != yaml.ScalarNode {
		p.fatal("yaml-shape", p.at(n), "priority must be a number")
		return 0, false
	}
	f, ok := number(n)
	if !ok || f != math.Trunc(f) || f < 0 || f > 3 {
		p.fatal("priority", p.at(n), "priority must be an integer from 0 to 3, not %s", strconv.Quote(n.Value))
		return 0, false
	}
	return int(f), true
}

// buckets reads bucket_definitions.
func (p *parser) buckets(n *yaml.Node, c *Config) {
	for _, e := range p.entries(n) {
		if !p.mapping(e.node, "a bucket definition") {
			continue
		}
		b := Bucket{Name: Name{e.key, e.keyAt}, Body: p.at(e.node)}
		hasData := false
		for _, f := range p.entries(e.node) {
			switch f.key {
			case "parameters":
				b.HasParameters = true
				if f.node.Kind == yaml.SequenceNode {
					b.Parameters = p.texts(f.node, f.key)
				} else if t, ok := p.text(f.node, f.key); ok {
					b.Parameters = []Text{t}
				} else {
					b.HasParameters = false
				}
			case "data":
				hasData = true
				b.Data = p.texts(f.node, f.key)
			case "priority":
				b.Priority, b.HasPriority = p.priority(f.node)
			case "accept_potentially_dangerous_queries":
				b.AcceptDangerous = p.bool(f.node, f.key)
			default:
				p.unknown(f, "parameters", "data", "priority", "accept_potentially_dangerous_queries")
			}
		}
		if !hasData {
			p.fatal("missing-key", b.Body, "data is missing")
		}
		c.Buckets = append(c.Buckets, b)
	}
}

// streams reads streams.
func (p *parser) streams(n *yaml.Node, c *Config) {
	old := !c.Options.Compiler3()
	for _, e := range p.entries(n) {
		if !p.mapping(e.node, "a stream") {
			continue
		}
		s := Stream{Name: Name{e.key, e.keyAt}, Body: p.at(e.node), Priority: 3}
		if old {
			p.warn("alpha-streams", Span{e.keyAt.Start, s.Body.End}, "streams before edition 3 are an early version; use edition 3")
		}
		has := map[string]bool{}
		for _, f := range p.entries(e.node) {
			has[f.key] = true
			switch f.key {
			case "query":
				if t, ok := p.text(f.node, f.key); ok {
					s.Queries = append(s.Queries, t)
				}
			case "queries":
				if old {
					p.fatal("unsupported", p.at(f.node), "queries needs edition 3")
					continue
				}
				s.Queries = append(s.Queries, p.texts(f.node, f.key)...)
			case "with":
				if old {
					p.fatal("unsupported", p.at(f.node), "with needs edition 3")
					continue
				}
				s.With = p.ctes(f.node)
			case "auto_subscribe":
				s.AutoSubscribe = p.bool(f.node, f.key)
			case "priority":
				if v, ok := p.priority(f.node); ok {
					s.Priority, s.HasPriority = v, true
				}
			case "accept_potentially_dangerous_queries":
				s.AcceptDangerous = p.bool(f.node, f.key)
			default:
				p.unknown(f, "query", "queries", "with", "auto_subscribe", "priority", "accept_potentially_dangerous_queries")
			}
		}
		switch {
		case !has["query"] && !has["queries"]:
			p.fatal("missing-key", s.Body, "query is missing")
		case has["query"] && has["queries"] && !old:
			p.fatal("missing-key", s.Body, "query and queries exclude each other")
		}
		c.Streams = append(c.Streams, s)
	}
}

// ctes reads a with block.
func (p *parser) ctes(n *yaml.Node) []CTE {
	if !p.mapping(n, "with") {
		return nil
	}
	var ctes []CTE
	for _, e := range p.entries(n) {
		if t, ok := p.text(e.node, "a query"); ok {
			ctes = append(ctes, CTE{Name{e.key, e.keyAt}, t})
		}
	}
	return ctes
}

// events reads event_definitions.
func (p *parser) events(n *yaml.Node, c *Config) {
	for _, e := range p.entries(n) {
		if !p.mapping(e.node, "an event definition") {
			continue
		}
		ev := Event{Name: Name{e.key, e.keyAt}}
		found := false
		for _, f := range p.entries(e.node) {
			if f.key == "payloads" {
				found = true
				ev.Payloads = p.texts(f.node, f.key)
				continue
			}
			p.unknown(f, "payloads")
		}
		if !found {
			p.fatal("missing-key", None, "payloads of the event %q are missing", e.key)
		}
		c.Events = append(c.Events, ev)
	}
}
