package config

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// parser gathers what is found while the tree is read.
type parser struct {
	env      func(string) (string, bool)
	problems []Problem
	warnings []Problem
	asked    func(key string) // of every key that is looked for; nil but in a test
}

// value is a node of the tree, nil if the key is absent, with its key.
type value struct {
	p    *parser
	node *yaml.Node
	key  string
}

func (v value) problem(code errs.Code, format string, args ...any) {
	v.p.problems = append(v.p.problems, v.finding(code, format, args...))
}

func (v value) warning(format string, args ...any) {
	v.p.warnings = append(v.p.warnings, v.finding("", format, args...))
}

func (v value) finding(code errs.Code, format string, args ...any) Problem {
	f := Problem{Key: v.key, Code: code, Message: fmt.Sprintf(format, args...)}
	if v.node != nil {
		f.Line, f.Column = v.node.Line, v.node.Column
	}
	return f
}

// target follows aliases.
func target(n *yaml.Node) *yaml.Node {
	for range maxDepth {
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

// has reports whether the key is there and not null.
func (v value) has() bool {
	n := target(v.node)
	return n != nil && n.ShortTag() != "!!null"
}

func (v value) bad() bool { n := target(v.node); return n != nil && n.Tag == badTag }

// get returns the value at key of a map. Wrong kinds are reported by want.
func (v value) get(key string) value {
	out := value{p: v.p, key: join(v.key, key)}
	if v.p.asked != nil {
		v.p.asked(out.key)
	}
	if n := target(v.node); n != nil && n.Kind == yaml.MappingNode {
		out.node = find(n, key, 0)
	}
	return out
}

func find(n *yaml.Node, key string, depth int) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	if depth > 8 {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Tag != "!!merge" {
			continue
		}
		m := target(n.Content[i+1])
		if m == nil {
			continue
		}
		maps := []*yaml.Node{m}
		if m.Kind == yaml.SequenceNode {
			maps = m.Content
		}
		for _, m := range maps {
			if m = target(m); m != nil && m.Kind == yaml.MappingNode {
				if found := find(m, key, depth+1); found != nil {
					return found
				}
			}
		}
	}
	return nil
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "." + b
}

// want reports a value of another kind than what and returns whether it is that
// kind. An absent value is not, and is not reported.
func (v value) want(ok func(n *yaml.Node) bool, what string) bool {
	if !v.has() || v.bad() {
		return false
	}
	if n := target(v.node); !ok(n) {
		v.problem(errs.S9001, "must be %s, not %s", what, kindName(n))
		return false
	}
	return true
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!str":
		return "text"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	}
	return "a " + strings.TrimLeft(n.ShortTag(), "!")
}

func isMap(n *yaml.Node) bool  { return n.Kind == yaml.MappingNode }
func isList(n *yaml.Node) bool { return n.Kind == yaml.SequenceNode }
func isTag(tags ...string) func(*yaml.Node) bool {
	return func(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && slices.Contains(tags, n.ShortTag()) }
}

// section returns v if it is a map; it reports another kind.
func (v value) section() (value, bool) { return v, v.want(isMap, "a map") }

// text returns a string, "" if absent. A timestamp-like scalar counts as text.
func (v value) text() string {
	if !v.want(isTag("!!str", "!!timestamp"), "text") {
		return ""
	}
	return target(v.node).Value
}

func (v value) textOr(or string) string {
	if s := v.text(); s != "" || v.has() {
		return s
	}
	return or
}

func (v value) boolOr(or bool) bool {
	if !v.want(isTag("!!bool"), "true or false") {
		return or
	}
	var b bool
	if err := target(v.node).Decode(&b); err != nil {
		v.problem(errs.S9001, "must be true or false")
		return or
	}
	return b
}

func (v value) floatOr(or float64) float64 {
	if !v.want(isTag("!!int", "!!float"), "a number") {
		return or
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(target(v.node).Value, "_", ""), 64)
	if err != nil {
		var n int64
		if target(v.node).Decode(&n) != nil {
			v.problem(errs.S9001, "must be a number")
			return or
		}
		f = float64(n)
	}
	return f
}

// intOr returns a whole number within [lo, hi].
func (v value) intOr(or, lo, hi int64, code errs.Code) int64 {
	f := v.floatOr(float64(or))
	if f != math.Trunc(f) || math.IsNaN(f) || f < float64(lo) || f > float64(hi) {
		if hi >= math.MaxInt32 {
			v.problem(code, "must be a whole number of at least %d", lo)
		} else {
			v.problem(code, "must be a whole number from %d to %d", lo, hi)
		}
		return or
	}
	return int64(f)
}

// portOr returns a port, as number or numeric text.
func (v value) portOr(or, lo int, code errs.Code) int {
	if !v.want(isTag("!!int", "!!float", "!!str"), "a port") {
		return or
	}
	n, err := strconv.Atoi(strings.TrimSpace(target(v.node).Value))
	if err != nil || n < lo || n > 65535 {
		v.problem(code, "must be a port from %d to 65535", lo)
		return or
	}
	return n
}

// in returns a duration given as a number of units within [lo, hi].
func (v value) in(unit time.Duration, or, lo, hi int64) time.Duration {
	return time.Duration(v.intOr(or, lo, hi, errs.S9001)) * unit
}

// list returns the elements.
func (v value) list() []value {
	if !v.want(isList, "a list") {
		return nil
	}
	var out []value
	for i, n := range target(v.node).Content {
		out = append(out, value{p: v.p, node: n, key: fmt.Sprintf("%s[%d]", v.key, i)})
	}
	return out
}

func (v value) texts() []string {
	var out []string
	for _, e := range v.list() {
		if s := e.text(); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// oneOrMore returns a list of texts, or the one text that there is.
func (v value) oneOrMore() []value {
	if n := target(v.node); v.has() && n.Kind == yaml.ScalarNode {
		return []value{v}
	}
	return v.list()
}

func (v value) enum(or string, names ...string) string {
	s := v.text()
	if s == "" {
		return or
	}
	if !slices.Contains(names, s) {
		v.problem(errs.S9001, "must be one of %s", strings.Join(names, ", "))
		return or
	}
	return s
}

func (v value) ranges() Ranges {
	var r Ranges
	for _, e := range v.list() {
		s := e.text()
		if s == "" {
			continue
		}
		if s == "local" {
			r.Local = true
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			e.problem(errs.S9001, "must be local or a range like 10.0.0.0/8")
			continue
		}
		r.Prefixes = append(r.Prefixes, p.Masked())
	}
	return r
}

// keys yields the keys of a map with their values.
func (v value) keys() []value {
	n := target(v.node)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	var out []value
	for i := 0; i+1 < len(n.Content); i += 2 {
		out = append(out, value{p: v.p, node: n.Content[i+1], key: join(v.key, n.Content[i].Value)})
	}
	return out
}
