package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// maxDepth bounds how deep a config nests and how far aliases are followed.
const maxDepth = 64

type form int

const (
	anyForm form = iota // YAML, then JSON
	yamlForm
	jsonForm
)

// source is a config before it is understood.
type source struct {
	name, dir string
	text      []byte
	form      form
	env       func(string) (string, bool)
	sync      *string // a sync config that replaces the file's
}

func (s source) parse() (*File, error) {
	p := &parser{env: s.env}
	root, problem := s.tree()
	if problem == nil && (root == nil || root.Kind != yaml.MappingNode) {
		problem = &Problem{Code: errs.S9001, Message: "the config must be a map"}
		if root != nil {
			problem.Line, problem.Column = root.Line, root.Column
		}
	}
	if problem != nil {
		return nil, &Error{Name: s.name, Problems: []Problem{*problem}}
	}
	p.resolveEnv(root, 0)
	f := p.file(value{p: p, node: root}, s)
	if len(p.problems) > 0 {
		return nil, &Error{Name: s.name, Problems: ordered(p.problems)}
	}
	f.Warnings = p.warnings
	return f, nil
}

// ordered sorts problems by place and drops repetitions.
func ordered(ps []Problem) []Problem {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return slices.Compact(ps)
}

// tree parses the text, with positions.
func (s source) tree() (*yaml.Node, *Problem) {
	if s.form == jsonForm {
		return jsonTree(s.text)
	}
	root, problem := yamlTree(s.text)
	if problem != nil && s.form == anyForm {
		if root, p := jsonTree(s.text); p == nil {
			return root, nil
		}
	}
	return root, problem
}

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\s*)?line (\d+): (.*)`)

func yamlTree(text []byte) (root *yaml.Node, problem *Problem) {
	defer func() { // the parser panics on some inputs that are no YAML
		if r := recover(); r != nil {
			root, problem = nil, &Problem{Code: errs.S9001, Message: "not YAML"}
		}
	}()
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		p := &Problem{Code: errs.S9001, Message: strings.TrimPrefix(err.Error(), "yaml: ")}
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			p.Line, _ = strconv.Atoi(m[1])
			p.Column, p.Message = 1, m[2]
		}
		return nil, p
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 {
		return nil, nil
	}
	return doc.Content[0], nil
}

// jsonTree makes the tree that the same text would be as YAML, without !env.
func jsonTree(text []byte) (*yaml.Node, *Problem) {
	j := &jsonReader{dec: json.NewDecoder(bytes.NewReader(text)), text: text}
	j.dec.UseNumber()
	n, err := j.node(0)
	if err == nil {
		if _, more := j.dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("text after the end of the JSON value")
		}
	}
	if err != nil {
		var syntax *json.SyntaxError
		at := j.dec.InputOffset()
		if errors.As(err, &syntax) {
			at = syntax.Offset
		}
		line, column := j.place(at)
		return nil, &Problem{Line: line, Column: column, Code: errs.S9001, Message: "not JSON: " + err.Error()}
	}
	return n, nil
}

type jsonReader struct {
	dec  *json.Decoder
	text []byte
	// The line of the last place asked for, from which the next is counted.
	at, line, start int64
}

// place is the line and column of an offset, which only grows from call to call
// except at an error.
func (j *jsonReader) place(offset int64) (line, column int) {
	offset = min(offset, int64(len(j.text)))
	if offset < j.at {
		j.at, j.line, j.start = 0, 0, 0
	}
	for ; j.at < offset; j.at++ {
		if j.text[j.at] == '\n' {
			j.line++
			j.start = j.at + 1
		}
	}
	return int(j.line) + 1, int(offset-j.start) + 1
}

func (j *jsonReader) node(depth int) (*yaml.Node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxDepth)
	}
	offset := j.dec.InputOffset()
	for offset < int64(len(j.text)) && strings.IndexByte(" \t\r\n,:", j.text[offset]) >= 0 {
		offset++
	}
	n := &yaml.Node{Kind: yaml.ScalarNode}
	n.Line, n.Column = j.place(offset)
	t, err := j.dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Delim:
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		if t == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
		}
		for j.dec.More() {
			c, err := j.node(depth + 1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, c)
		}
		_, err = j.dec.Token()
		return n, err
	case string:
		n.Tag, n.Value = "!!str", t
	case json.Number:
		n.Tag, n.Value = "!!float", t.String()
		if _, err := strconv.ParseInt(t.String(), 10, 64); err == nil {
			n.Tag = "!!int"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
	case nil:
		n.Tag = "!!null"
	}
	return n, nil
}

// resolveEnv replaces scalars with the tag !env by environment variables, and
// reports keys that are given twice.
func (p *parser) resolveEnv(n *yaml.Node, depth int) {
	if depth > maxDepth {
		return // deeper than any key that is read
	}
	if n.Kind == yaml.MappingNode {
		seen := map[string]bool{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if seen[k.Value] {
				p.problems = append(p.problems, Problem{Line: k.Line, Column: k.Column, Code: errs.S9001, Message: fmt.Sprintf("key %s is given twice", k.Value)})
			}
			seen[k.Value] = true
		}
	}
	for _, c := range n.Content {
		p.resolveEnv(c, depth+1)
	}
	if n.Tag != "!env" {
		return
	}
	bad := func(format string, args ...any) {
		p.problems = append(p.problems, Problem{Line: n.Line, Column: n.Column, Code: errs.S9001, Message: fmt.Sprintf(format, args...)})
		n.Kind, n.Tag, n.Value, n.Content = yaml.ScalarNode, badTag, "", nil
	}
	if n.Kind != yaml.ScalarNode {
		bad("!env needs the name of an environment variable")
		return
	}
	name, cast, _ := strings.Cut(n.Value, "::")
	if !strings.HasPrefix(name, "PS_") {
		bad("!env %s: only variables that begin with PS_ may be used", name)
		return
	}
	v, ok := p.env(name)
	if !ok {
		bad("!env %s: the environment variable is not set", name)
		return
	}
	switch strings.TrimSpace(cast) {
	case "", "string":
		n.Tag = "!!str"
	case "number":
		v = strings.TrimSpace(v)
		if _, err := strconv.ParseFloat(v, 64); err != nil {
			bad("!env %s: the value is not a number", name)
			return
		}
		n.Tag = "!!float"
		if _, err := strconv.ParseInt(v, 10, 64); err == nil {
			n.Tag = "!!int"
		}
	case "boolean":
		if v != "true" && v != "false" {
			bad("!env %s: the value is neither true nor false", name)
			return
		}
		n.Tag = "!!bool"
	default:
		bad("!env %s: unknown type %q; there are string, number and boolean", name, cast)
		return
	}
	n.Value, n.Style = v, yaml.DoubleQuotedStyle
}

// badTag marks a scalar about which a problem was reported already.
const badTag = "!bad"
