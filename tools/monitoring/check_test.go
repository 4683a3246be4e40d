package main

import (
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

// TestRepository: what is in the repository is right.
func TestRepository(t *testing.T) {
	c, err := open("../..")
	if err != nil {
		t.Fatal(err)
	}
	c.all()
	for _, f := range c.found {
		t.Error(f)
	}
	if len(c.anchors) < 30 || c.panels < 50 {
		t.Errorf("%d alerts and %d panels are looked at", len(c.anchors), c.panels)
	}
}

// good is a small repository without a fault.
var good = map[string]string{
	metricsDoc:  "| `sluice_a_total` | counter |  | `stream` | A. |\n| `sluice_b_seconds` | histogram | s |  | B. |\n| `sluice_c` | gauge |  |  | C. |\n",
	runbooksDoc: "# Runbooks\n\n## SluiceA\n\n**Means.** a\n\n**Users notice.** b\n\n**Check.** `sluice status`; sluice_a_total\n\n**Mend.** d\n",
	commandLine: "package main\n\ntype cli struct {\n\tStatus   statusCmd   `cmd:\"\" help:\"x\"`\n\tSettings settingsCmd `cmd:\"\" name:\"config\"`\n}\n",
	rulesDir + "/a.yaml": `groups:
  - name: a
    rules:
      - alert: SluiceA
        expr: sum by (stream) (rate(sluice_a_total{namespace="x"}[5m])) > 1
        labels: {severity: warning}
        annotations: {summary: "A.", description: "B.", runbook_url: "` + runbooksURL + `sluicea"}
`,
	testsDir + "/a_test.yaml": `alertname="SluiceA"`,
	boardsDir + "/a.json": `{"uid": "sluice-a", "title": "A", "templating": {"list": [
  {"name": "datasource", "type": "datasource", "query": "prometheus"},
  {"name": "namespace", "type": "query", "definition": "label_values(sluice_c, namespace)"}]},
"panels": [
  {"id": 1, "type": "timeseries", "title": "P", "description": "D", "datasource": {"type": "prometheus", "uid": "${datasource}"}, "gridPos": {"h": 2, "w": 12, "x": 0, "y": 0},
   "fieldConfig": {"defaults": {"unit": "s"}}, "targets": [{"refId": "A", "expr": "histogram_quantile(0.5, sum by (le) (rate(sluice_b_seconds_bucket{namespace=~\"$namespace\"}[$__rate_interval])))"}]},
  {"id": 2, "type": "stat", "title": "Q", "description": "D", "datasource": {"type": "prometheus", "uid": "${datasource}"}, "gridPos": {"h": 2, "w": 12, "x": 12, "y": 0},
   "fieldConfig": {"defaults": {"unit": "short"}}, "targets": [{"refId": "A", "expr": "sluice_c"}]}]}`,
}

// TestFaults: each fault is found, and nothing else is.
func TestFaults(t *testing.T) {
	rules, board := rulesDir+"/a.yaml", boardsDir+"/a.json"
	for _, f := range []struct{ file, old, new, want string }{
		{"", "", "", ""},
		{rules, "sum by (stream) (rate(", "sum by (stream) rate((", "parse error"},
		{rules, "rate(sluice_a_total", "rate(sluice_z_total", "no metric sluice_z_total is documented"},
		{rules, "sluice_a_total{", "sluice_b_seconds_total{", "no metric sluice_b_seconds_total is documented"},
		{rules, "{namespace=", "{bucket=", "sluice_a_total has no label bucket"},
		{rules, "by (stream)", "by (user)", "has a label user"},
		{rules, "rate(sluice_a_total{namespace=\"x\"}", "rate(sluice_c", "rate of sluice_c, which is a gauge"},
		{rules, "warning", "annoying", "severity is"},
		{rules, `summary: "A."`, `summary: ""`, "not a sentence"},
		{rules, "#sluicea", "#sluiceb", "runbook_url is"},
		{rules, "alert: SluiceA", "alert: SluiceB", `no section "SluiceB"`},
		{rules, "expr:", "exp:", "field exp not found"},
		{testsDir + "/a_test.yaml", "SluiceA", "SluiceB", "has it fire"},
		{runbooksDoc, "**Mend.** d", "**Mend** d", `no "**Mend.** "`},
		{runbooksDoc, "## SluiceA", "## SluiceB", "no such alert"},
		{runbooksDoc, "sluice status", "sluice mend", "sluice has no command mend"},
		{runbooksDoc, "sluice_a_total", "sluice_a_b_total", "no metric sluice_a_b_total"},
		{board, `"uid": "sluice-a"`, `"uid": "a"`, "uid is"},
		{board, `"title": "A"`, `"title": ""`, "title is"},
		{board, `"type": "datasource"`, `"type": "query"`, "the first variable is not the data source"},
		{board, "label_values(sluice_c", "label_values(sluice_z", "no metric sluice_z"},
		{board, `"id": 2`, `"id": 1`, "id 1"},
		{board, `"x": 12`, `"x": 11`, "lies over"},
		{board, `"x": 12`, `"x": 13`, "out of the board"},
		{board, `"description": "D"`, `"description": ""`, "no description"},
		{board, `"unit": "short"`, `"unit": "furlongs"`, `unit "furlongs"`},
		{board, `"unit": "s"`, `"unit": "ms"`, "seconds as ms"},
		{board, "$namespace", "$pod", "no variable pod"},
		{board, `"uid": "${datasource}"`, `"uid": "mine"`, "is not the variable"},
		{board, `"expr": "sluice_c"`, `"expr": "sluice_d"`, "no metric sluice_d"},
		{board, `"expr": "sluice_c"`, `"expr": "sluice_a_total"`, "sluice_c is on no board"},
		{board, `}]}]}`, `}]}]`, "unexpected end"},
	} {
		files := fstest.MapFS{}
		for name, text := range good {
			if name == f.file {
				if !strings.Contains(text, f.old) {
					t.Fatalf("%s: no %q", name, f.old)
				}
				text = strings.Replace(text, f.old, f.new, 1)
			}
			files[name] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
		}
		c, err := read(fs.FS(files))
		if err != nil {
			t.Fatal(err)
		}
		c.all()
		got := strings.Join(c.found, "\n")
		if f.want == "" && got != "" || !strings.Contains(got, f.want) {
			t.Errorf("%q for %q: %q, not %q", f.new, f.old, got, f.want)
		}
	}
	if _, err := read(os.DirFS(t.TempDir())); err == nil {
		t.Error("an empty folder is a repository")
	}
}
