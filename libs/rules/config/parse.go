package config

import (
	"fmt"
	"math"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Parse reads a document. The config has what could be read, also when
// findings are fatal.
func Parse(src string) (*Config, []Finding) {
	p := &parser{src: src}
	c := &Config{Options: Options{Edition: 1, StorageVersion: 2}}
	if len(src) > MaxSize {
		p.fatal("too-large", None, "the config is larger than %d bytes", MaxSize)
		return c, p.findings
	}
	if root := p.document(); root != nil {
		p.config(root, c)
	}
	return c, p.findings
}

type parser struct {
	src      string
	lines    []int // offset of each line's start, in yaml's sense of a line
	findings []Finding
	// last is the place that offset found last: the next one is often behind it.
	last struct{ line, column, offset int }
}

func (p *parser) fatal(class string, at Span, format string, args ...any) {
	p.findings = append(p.findings, Finding{true, class, fmt.Sprintf(format, args...), at})
}

func (p *parser) warn(class string, at Span, format string, args ...any) {
	p.findings = append(p.findings, Finding{false, class, fmt.Sprintf(format, args...), at})
}

var errorLine = regexp.MustCompile(`line \d+: `)

// document parses the YAML and returns the root map.
func (p *parser) document() *yaml.Node {
	p.lines = lineStarts(p.src)
	dec := yaml.NewDecoder(strings.NewReader(readableVersion(p.src)))
	var doc yaml.Node
	if err := decode(dec, &doc); err != nil {
		if err.Error() == "EOF" {
			p.fatal("yaml-shape", None, "the config is empty")
			return nil
		}
		p.syntaxError(err)
		return nil
	}
	root := doc.Content[0]
	if p.tooDeep(root, 0) {
		return nil
	}
	p.duplicates(root)
	var next yaml.Node
	if err := decode(dec, &next); err == nil {
		p.fatal("yaml", p.marker(next.Line), "the config has several documents")
	} else if err.Error() != "EOF" {
		p.syntaxError(err)
	}
	if root.Kind != yaml.MappingNode {
		p.fatal("yaml-shape", p.at(root), "the config must be a map with bucket_definitions or streams")
		return nil
	}
	return root
}

// syntaxError reports that the document is no YAML. The package names the line
// where the broken construct begins, if any; the fault is rather on the line
// after the longest part of the text that can be read.
func (p *parser) syntaxError(err error) {
	msg := errorLine.ReplaceAllString(strings.TrimPrefix(err.Error(), "yaml: "), "")
	if m := unknownAnchor.FindStringSubmatch(msg); m != nil {
		if i := strings.Index(p.src, "*"+m[1]); i >= 0 {
			p.fatal("yaml", Span{i, i + 1 + len(m[1])}, "%s", msg)
			return
		}
	}
	if strings.Contains(msg, "end of stream") || unclosed(p.src, 3) {
		p.fatal("yaml", Span{len(p.src), len(p.src)}, "%s", msg)
		return
	}
	good, bad := 0, len(p.lines)
	for good+1 < bad {
		mid := (good + bad) / 2
		if readable(p.src[:p.lines[mid]]) {
			good = mid
		} else {
			bad = mid
		}
	}
	p.fatal("yaml", p.line(good+1), "%s", msg)
}

var unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced`)

// readable tells whether a text is YAML.
func readable(src string) bool {
	dec := yaml.NewDecoder(strings.NewReader(readableVersion(src)))
	for {
		if err := decode(dec, new(yaml.Node)); err != nil {
			return err.Error() == "EOF"
		}
	}
}

// unclosed tells whether a text lacks nothing but closing brackets, n at most.
func unclosed(src string, n int) bool {
	for _, bracket := range []string{"]", "}"} {
		if more := src + bracket; n > 0 && (readable(more) || unclosed(more, n-1)) {
			return true
		}
	}
	return false
}

// readableVersion replaces a directive for YAML 1.2, which the package takes
// for unknown although it reads what we need of it.
func readableVersion(src string) string {
	if m := version12.FindStringSubmatchIndex(src); m != nil {
		return src[:m[2]] + "1.1" + src[m[3]:]
	}
	return src
}

var version12 = regexp.MustCompile(`^(?:\x{feff})?%YAML (1\.2)\s`)

// marker returns the last document marker at or before a line.
func (p *parser) marker(line int) Span {
	for ; line > 1; line-- {
		if at := p.line(line); strings.HasPrefix(p.src[at.Start:], "---") {
			return Span{at.Start, at.Start + 3}
		}
	}
	return None
}

// decode turns the panics that the YAML package reserves for itself into
// errors.
func decode(dec *yaml.Decoder, n *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	return dec.Decode(n)
}

// tooDeep bounds what recursion follows.
func (p *parser) tooDeep(n *yaml.Node, depth int) bool {
	if depth > MaxDepth {
		p.fatal("too-deep", p.at(n), "collections are nested more than %d deep", MaxDepth)
		return true
	}
	for _, c := range n.Content {
		if p.tooDeep(c, depth+1) {
			return true
		}
	}
	return false
}

func (p *parser) duplicates(n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		seen := map[string]bool{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind != yaml.ScalarNode {
				continue
			}
			id := k.ShortTag() + k.Value
			if seen[id] {
				p.fatal("duplicate-key", p.at(k), "the key %q is there twice", k.Value)
			}
			seen[id] = true
		}
	}
	for _, c := range n.Content {
		p.duplicates(c)
	}
}

// lineStarts finds the lines as the YAML package counts them.
func lineStarts(src string) []int {
	starts := []int{0}
	for i := 0; i < len(src); {
		r, n := utf8.DecodeRuneInString(src[i:])
		i += n
		switch r {
		case '\r':
			if i < len(src) && src[i] == '\n' {
				i++
			}
			starts = append(starts, i)
		case '\n', 0x85, 0x2028, 0x2029:
			starts = append(starts, i)
		}
	}
	return starts
}

func (p *parser) line(n int) Span {
	if n < 1 {
		return None
	}
	if n > len(p.lines) {
		return Span{len(p.src), len(p.src)}
	}
	return Span{p.lines[n-1], p.lines[n-1]}
}

// offset of the n-th character (from 1) of a line.
func (p *parser) offset(line, column int) int {
	i, c := max(p.line(line).Start, 0), 1
	if line == 1 && strings.HasPrefix(p.src, "\ufeff") {
		i += 3
	}
	if p.last.line == line && p.last.column <= column && p.last.column > 0 {
		i, c = p.last.offset, p.last.column
	}
	for ; c < column && i < len(p.src); c++ {
		_, n := utf8.DecodeRuneInString(p.src[i:])
		i += n
	}
	p.last.line, p.last.column, p.last.offset = line, column, i
	return i
}

// at returns a node's place: of a scalar all of it, of a collection from its
// start to the end of its last scalar.
func (p *parser) at(n *yaml.Node) Span {
	start := p.offset(n.Line, n.Column)
	switch n.Kind {
	case yaml.ScalarNode:
		return newText(p.src, n, start).Node
	case yaml.AliasNode:
		return Span{start, start + 1 + len(n.Value)}
	}
	end := start
	for _, c := range n.Content {
		end = max(end, p.at(c).End)
	}
	return Span{start, end}
}

// isNull tells whether a node is null under the YAML 1.2 core schema.
func isNull(n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode || !plain(n) {
		return false
	}
	switch n.Value {
	case "", "~", "null", "Null", "NULL":
		return true
	}
	return false
}

func plain(n *yaml.Node) bool {
	return n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle|yaml.TaggedStyle) == 0
}

var (
	numberText = regexp.MustCompile(`^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?)$`)
	oddNumber  = regexp.MustCompile(`^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$`)
)

// number reads a node as a number.
func number(n *yaml.Node) (float64, bool) {
	if n.Kind != yaml.ScalarNode || !plain(n) {
		return 0, false
	}
	if oddNumber.MatchString(n.Value) {
		return math.NaN(), true
	}
	if !numberText.MatchString(n.Value) {
		return 0, false
	}
	if strings.HasPrefix(n.Value, "0x") || strings.HasPrefix(n.Value, "0o") {
		u, err := strconv.ParseUint(n.Value, 0, 64)
		return float64(u), err == nil
	}
	f, _ := strconv.ParseFloat(n.Value, 64)
	return f, true
}

// boolean reads a node as a boolean.
func boolean(n *yaml.Node) (value, ok bool) {
	if n.Kind != yaml.ScalarNode || !plain(n) {
		return false, false
	}
	switch n.Value {
	case "true", "True", "TRUE":
		return true, true
	case "false", "False", "FALSE":
		return false, true
	}
	return false, false
}

// isText tells whether a key is text rather than null, a number or a boolean.
func isText(n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode {
		return false
	}
	_, isNumber := number(n)
	_, isBool := boolean(n)
	return !isNull(n) && !isNumber && !isBool
}

// entry is a key with its value.
type entry struct {
	key   string
	keyAt Span
	node  *yaml.Node
}

// entries returns a map's entries; what is not a text key is reported.
func (p *parser) entries(n *yaml.Node) []entry {
	var es []entry
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if !isText(k) {
			p.fatal("yaml-shape", p.at(k), "a key here must be text")
			continue
		}
		es = append(es, entry{k.Value, p.at(k), n.Content[i+1]})
	}
	return es
}

// mapping checks that a node is a map.
func (p *parser) mapping(n *yaml.Node, what string) bool {
	if n.Kind == yaml.AliasNode {
		p.fatal("yaml-shape", p.at(n), "aliases are not supported")
		return false
	}
	if n.Kind != yaml.MappingNode {
		p.fatal("yaml-shape", p.at(n), "%s must be a map", what)
		return false
	}
	return true
}

// text reads a scalar.
func (p *parser) text(n *yaml.Node, what string) (Text, bool) {
	if n.Kind == yaml.AliasNode {
		p.fatal("yaml-shape", p.at(n), "aliases are not supported")
		return Text{}, false
	}
	if n.Kind != yaml.ScalarNode {
		p.fatal("yaml-shape", p.at(n), "%s must be text", what)
		return Text{}, false
	}
	return newText(p.src, n, p.offset(n.Line, n.Column)), true
}

// texts reads a list of scalars.
func (p *parser) texts(n *yaml.Node, what string) []Text {
	if n.Kind != yaml.SequenceNode {
		p.fatal("yaml-shape", p.at(n), "%s must be a list", what)
		return nil
	}
	ts := make([]Text, 0, len(n.Content))
	for _, c := range n.Content {
		if t, ok := p.text(c, "an item of "+what); ok {
			ts = append(ts, t)
		}
	}
	return ts
}

func (p *parser) bool(n *yaml.Node, key string) bool {
	b, ok := boolean(n)
	if !ok {
		p.fatal("yaml-shape", p.at(n), "%s must be true or false", key)
	}
	return b
}

// unknown reports a key that is not known, with the nearest one that is.
func (p *parser) unknown(e entry, known ...string) {
	if near := Nearest(e.key, known); near != "" {
		p.fatal("unknown-key", e.keyAt, "unknown key %q; is it %q?", e.key, near)
		return
	}
	sort.Strings(known)
	p.fatal("unknown-key", e.keyAt, "unknown key %q; known are %s", e.key, strings.Join(known, ", "))
}
