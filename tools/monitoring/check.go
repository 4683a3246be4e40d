package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

// Where things are.
const (
	metricsDoc  = "docs/metrics.md"
	runbooksDoc = "docs/runbooks.md"
	rulesDir    = "deploy/helm/sluice/files/rules"
	boardsDir   = "deploy/helm/sluice/files/boards"
	testsDir    = "tools/monitoring/rules" // for promtool
	commandLine = "services/sluice/cmd/sluice/main.go"

	runbooksURL = "https://github.com/sluicesync/sluice/blob/main/" + runbooksDoc + "#"
)

// metric is one as docs/metrics.md has it.
type metric struct {
	kind   string
	labels []string
}

// check is one look at a repository.
type check struct {
	root     fs.FS
	metrics  map[string]metric
	sections map[string]string // of docs/runbooks.md: text by title
	anchors  map[string]string // alert by anchor
	used     map[string]bool   // metrics that a rule or a board asks for
	panels   int
	found    []string // what is wrong
}

func open(root string) (*check, error) { return read(os.DirFS(root)) }

var (
	metricRow = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (\\w+) \\| [^|]* \\| ([^|]*) \\|")
	section   = regexp.MustCompile(`(?m)^## (.+)\n`)
)

func read(root fs.FS) (*check, error) {
	c := &check{root: root, metrics: map[string]metric{}, sections: map[string]string{}, anchors: map[string]string{}, used: map[string]bool{}}
	text, err := fs.ReadFile(root, metricsDoc)
	if err != nil {
		return nil, err
	}
	for _, row := range metricRow.FindAllStringSubmatch(string(text), -1) {
		m := metric{kind: row[2]}
		for l := range strings.SplitSeq(strings.ReplaceAll(row[3], "`", ""), ", ") {
			if l != "" {
				m.labels = append(m.labels, l)
			}
		}
		c.metrics[row[1]] = m
	}
	if len(c.metrics) == 0 {
		return nil, errors.New(metricsDoc + " has no metrics")
	}
	if text, err = fs.ReadFile(root, runbooksDoc); err != nil {
		return nil, err
	}
	at := section.FindAllStringSubmatchIndex(string(text), -1)
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		c.sections[string(text[m[2]:m[3]])] = string(text[m[1]:end])
	}
	return c, nil
}

// all checks everything.
func (c *check) all() {
	c.alerts()
	c.runbooks()
	c.boards()
	c.unused()
}

func (c *check) report(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// files are those of a folder with the ending.
func (c *check) files(dir, ending string) []string {
	names, err := fs.Glob(c.root, path.Join(dir, "*"+ending))
	if err != nil || len(names) == 0 {
		c.report("%s has no *%s", dir, ending)
	}
	return names
}

// targetLabels are those that whoever fetches the metrics adds.
var targetLabels = []string{"namespace", "pod", "instance", "service"}

// expression checks one of PromQL.
func (c *check) expression(where, text string) {
	e, err := parser.ParseExpr(text)
	if err != nil {
		c.report("%s: %s: %v", where, text, err)
		return
	}
	known := map[string]bool{} // labels of the metrics asked for
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		s, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		m, name := c.metric(s.Name)
		if name == "" {
			c.report("%s: no metric %s is documented", where, s.Name)
			return nil
		}
		c.used[name] = true
		own := m.labels
		switch {
		case strings.HasSuffix(s.Name, "_bucket"):
			own = append(own[:len(own):len(own)], "le")
		case m.kind == "summary" && s.Name == name:
			own = append(own[:len(own):len(own)], "quantile")
		}
		for _, l := range own {
			known[l] = true
		}
		for _, l := range s.LabelMatchers {
			if l.Name != labels.MetricName && !slices.Contains(targetLabels, l.Name) && !slices.Contains(own, l.Name) {
				c.report("%s: %s has no label %s", where, s.Name, l.Name)
			}
		}
		return nil
	})
	parser.Inspect(e, func(n parser.Node, up []parser.Node) error {
		var asked []string
		switch n := n.(type) {
		case *parser.AggregateExpr:
			asked = n.Grouping
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				asked = n.VectorMatching.MatchingLabels
			}
		case *parser.Call:
			c.function(where, n)
		}
		for _, l := range asked {
			if !known[l] && !slices.Contains(targetLabels, l) {
				c.report("%s: no metric of %s has a label %s", where, text, l)
			}
		}
		return nil
	})
}

// metric finds one by the name of a series.
func (c *check) metric(series string) (metric, string) {
	if m, ok := c.metrics[series]; ok && m.kind != "histogram" {
		return m, series
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		name, ok := strings.CutSuffix(series, suffix)
		if m := c.metrics[name]; ok && (m.kind == "histogram" || m.kind == "summary" && suffix != "_bucket") {
			return m, name
		}
	}
	return metric{}, ""
}

// unused reports metrics that nobody looks at; alerts and boards have been called.
func (c *check) unused() {
	for _, name := range slices.Sorted(maps.Keys(c.metrics)) {
		if !c.used[name] && (strings.HasPrefix(name, "sluice_") || strings.HasPrefix(name, "powersync_")) {
			c.report("%s: %s is on no board and in no alert", metricsDoc, name)
		}
	}
}

// function checks that what only makes sense of counters is asked of counters.
func (c *check) function(where string, call *parser.Call) {
	if !slices.Contains([]string{"rate", "irate", "increase"}, call.Func.Name) {
		return
	}
	if m, ok := call.Args[0].(*parser.MatrixSelector); ok {
		s := m.VectorSelector.(*parser.VectorSelector)
		if of, name := c.metric(s.Name); name != "" && of.kind == "gauge" {
			c.report("%s: %s of %s, which is a gauge", where, call.Func.Name, s.Name)
		}
	}
}

type rules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

func (c *check) alerts() {
	tests := ""
	for _, file := range c.files(testsDir, "_test.yaml") {
		text, err := fs.ReadFile(c.root, file)
		if err != nil {
			c.report("%v", err)
		}
		tests += string(text)
	}
	groups := map[string]bool{}
	for _, file := range c.files(rulesDir, ".yaml") {
		text, err := fs.ReadFile(c.root, file)
		if err != nil {
			c.report("%v", err)
			continue
		}
		var r rules
		d := yaml.NewDecoder(strings.NewReader(string(text)))
		d.KnownFields(true)
		if err := d.Decode(&r); err != nil {
			c.report("%s: %v", file, err)
			continue
		}
		for _, g := range r.Groups {
			if groups[g.Name] || len(g.Rules) == 0 {
				c.report("%s: group %q is empty or there twice", file, g.Name)
			}
			groups[g.Name] = true
			for _, a := range g.Rules {
				where := file + ": " + a.Alert
				c.expression(where, a.Expr)
				if s := a.Labels["severity"]; s != "critical" && s != "warning" {
					c.report("%s: severity is %q, not critical or warning", where, s)
				}
				for _, name := range []string{"summary", "description"} {
					if !strings.HasSuffix(a.Annotations[name], ".") {
						c.report("%s: %s is %q, not a sentence", where, name, a.Annotations[name])
					}
				}
				anchor := strings.ToLower(a.Alert)
				if other, ok := c.anchors[anchor]; ok {
					c.report("%s: %s is there twice", where, other)
				}
				c.anchors[anchor] = a.Alert
				if url := a.Annotations["runbook_url"]; url != runbooksURL+anchor {
					c.report("%s: runbook_url is %q, not %s", where, url, runbooksURL+anchor)
				}
				if !strings.Contains(tests, `alertname="`+a.Alert+`"`) {
					c.report("%s: no test of %s has it fire", where, testsDir)
				}
				if _, ok := c.sections[a.Alert]; !ok {
					c.report("%s: %s has no section %q", where, runbooksDoc, a.Alert)
				}
			}
		}
	}
}

// parts are what each section of docs/runbooks.md has.
var parts = []string{"**Means.** ", "**Users notice.** ", "**Check.** ", "**Mend.** "}

var (
	usage   = regexp.MustCompile("(?m)(?:^|`|\\$ |-- )sluice ([a-z]+)")
	command = regexp.MustCompile("(?m)^\t(\\w+)\\s+\\w+Cmd\\s+`cmd:\"\"(?: name:\"(\\w+)\")?")
)

// runbooks checks the sections; alerts has been called.
func (c *check) runbooks() {
	text, err := fs.ReadFile(c.root, commandLine)
	if err != nil {
		c.report("%v", err)
		return
	}
	commands := map[string]bool{}
	for _, m := range command.FindAllStringSubmatch(string(text), -1) {
		name := m[2]
		if name == "" {
			name = strings.ToLower(m[1])
		}
		commands[name] = true
	}
	for _, title := range slices.Sorted(maps.Keys(c.sections)) {
		where := runbooksDoc + ": " + title
		if c.anchors[strings.ToLower(title)] != title {
			c.report("%s: there is no such alert", where)
		}
		text := c.sections[title]
		for _, p := range parts {
			if !strings.Contains(text, p) {
				c.report("%s: no %q", where, p)
			}
		}
		for _, m := range usage.FindAllStringSubmatch(text, -1) {
			if !commands[m[1]] {
				c.report("%s: sluice has no command %s", where, m[1])
			}
		}
		for _, m := range metricName.FindAllString(text, -1) {
			if _, name := c.metric(m); name == "" && c.metrics[m].kind == "" {
				c.report("%s: no metric %s is documented", where, m)
			}
		}
	}
}

// metricName is one of ours in a text: the names of tables and settings are shorter.
var metricName = regexp.MustCompile(`\b(?:sluice|powersync)_(?:[a-z]+_)+(?:total|seconds|bytes|connections|batches|streams|sessions|failing)\b`)

// board is what of a Grafana board is looked at.
type board struct {
	UID, Title string
	Templating struct {
		List []struct {
			Name, Type, Definition string
			Query                  any // a text, or more
		}
	}
	Panels []panel
}

type panel struct {
	ID          int
	Type, Title string
	Description string
	Datasource  struct{ Type, UID string }
	GridPos     struct{ H, W, X, Y int }
	FieldConfig struct {
		Defaults struct{ Unit string }
	}
	Targets []struct{ Expr, RefID, LegendFormat string }
}

var (
	boardUID = regexp.MustCompile(`^sluice-[a-z-]+$`)
	// labelValues is how a variable is filled.
	labelValues = regexp.MustCompile(`^label_values\((\w+), *\w+\)$`)
	variable    = regexp.MustCompile(`\$\{?(\w+)\}?`)
)

// units are those of Grafana that the boards use.
var units = []string{"s", "ms", "bytes", "decbytes", "Bps", "short", "ops", "reqps", "percentunit", "dateTimeFromNow", "bool_yes_no", "none", "dtdurations"}

func (c *check) boards() {
	uids, titles := map[string]bool{}, map[string]bool{}
	for _, file := range c.files(boardsDir, ".json") {
		text, err := fs.ReadFile(c.root, file)
		if err != nil {
			c.report("%v", err)
			continue
		}
		var b board
		if err := json.Unmarshal(text, &b); err != nil {
			c.report("%s: %v", file, err)
			continue
		}
		if !boardUID.MatchString(b.UID) || b.UID != "sluice-"+strings.TrimSuffix(path.Base(file), ".json") || len(b.UID) > 40 || uids[b.UID] {
			c.report("%s: uid is %q", file, b.UID)
		}
		if b.Title == "" || titles[b.Title] {
			c.report("%s: title is %q", file, b.Title)
		}
		uids[b.UID], titles[b.Title] = true, true
		variables := map[string]bool{"__rate_interval": true, "__range": true}
		for _, v := range b.Templating.List {
			variables[v.Name] = true
			if of := labelValues.FindStringSubmatch(v.Definition); of != nil && c.metrics[of[1]].kind == "" {
				c.report("%s: variable %s: no metric %s is documented", file, v.Name, of[1])
			}
		}
		if len(b.Templating.List) == 0 || b.Templating.List[0].Name != "datasource" || b.Templating.List[0].Type != "datasource" || b.Templating.List[0].Query != any("prometheus") {
			c.report("%s: the first variable is not the data source", file)
		}
		c.panelsOf(file, &b, variables)
	}
}

func (c *check) panelsOf(file string, b *board, variables map[string]bool) {
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range b.Panels {
		where := fmt.Sprintf("%s: %q", file, p.Title)
		if p.Title == "" || p.ID == 0 || ids[p.ID] {
			c.report("%s: id %d", where, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					c.report("%s: lies over %q or out of the board", where, other)
					x = 24
					break
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" || p.Type == "text" {
			continue
		}
		c.panels++
		if p.Datasource.Type != "prometheus" || p.Datasource.UID != "${datasource}" {
			c.report("%s: data source %v is not the variable", where, p.Datasource)
		}
		if p.Description == "" {
			c.report("%s: no description", where)
		}
		if !slices.Contains(units, p.FieldConfig.Defaults.Unit) {
			c.report("%s: unit %q", where, p.FieldConfig.Defaults.Unit)
		}
		if len(p.Targets) == 0 {
			c.report("%s: nothing is asked", where)
		}
		refs := map[string]bool{}
		for _, t := range p.Targets {
			if t.RefID == "" || refs[t.RefID] {
				c.report("%s: refId %q", where, t.RefID)
			}
			refs[t.RefID] = true
			for _, v := range variable.FindAllStringSubmatch(t.Expr, -1) {
				if !variables[v[1]] {
					c.report("%s: no variable %s", where, v[1])
				}
			}
			// What Grafana fills in.
			expr := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h").Replace(t.Expr)
			c.expression(where, variable.ReplaceAllString(expr, "x"))
			if u := p.FieldConfig.Defaults.Unit; strings.Contains(t.Expr, "_seconds_bucket") && u != "s" {
				c.report("%s: seconds as %s", where, u)
			}
		}
	}
}
