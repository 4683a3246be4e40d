package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	diffOld = `
config:
  edition: 3
streams:
  lists:
    query: SELECT * FROM lists WHERE owner_id = auth.user_id()
  todos:
    query: SELECT * FROM todos WHERE owner_id = auth.user_id()
  gone:
    query: SELECT * FROM gone
`
	diffNew = `
config:
  edition: 3
streams:
  new:
    query: SELECT * FROM app.notes
  todos:
    query: SELECT id FROM todos WHERE owner_id = auth.user_id()
  logs:
    query: SELECT * FROM "log_%" AS logs
  lists: # theirs
    query: "SELECT * FROM lists  WHERE owner_id = auth.user_id()"
`
)

// diffInstance answers as an instance does; plan is what it replies to plan.
func diffInstance(t *testing.T, plan string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Token adm" {
			t.Errorf("%s with %q", r.URL, r.Header.Get("Authorization"))
		}
		switch r.Method + " " + r.URL.Path {
		case "POST /api/admin/v1/schema":
			fmt.Fprint(w, `{"data":{"connections":[{"schemas":[
				{"name":"public","tables":[{"name":"lists","estimated_rows":1200,"estimated_bytes":98304},{"name":"todos","estimated_rows":300000,"estimated_bytes":52428800},
					{"name":"gone","estimated_rows":9,"estimated_bytes":9},{"name":"log_1","estimated_rows":0,"estimated_bytes":0},{"name":"log_2"}]},
				{"name":"app","tables":[]}]}]}}`)
		case "POST /api/admin/v1/sluice/plan":
			body, err := io.ReadAll(r.Body)
			if err != nil || string(body) != diffNew {
				t.Errorf("%v %q", err, body)
			}
			fmt.Fprint(w, plan)
		default:
			t.Errorf("unexpected %s %s", r.Method, r.URL.Path)
		}
	}))
	t.Cleanup(s.Close)
	t.Setenv("SLUICE_URL", s.URL)
}

// diffFiles writes a service config and two sync configs.
func diffFiles(t *testing.T, older, newer string) (service_, old, new string) {
	t.Helper()
	path := files(t, service, newer)
	old = filepath.Join(filepath.Dir(path), "old.yaml")
	if err := os.WriteFile(old, []byte(older), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, old, filepath.Join(filepath.Dir(path), "sync.yaml")
}

func TestDiff(t *testing.T) {
	diffInstance(t, "")
	path, older, newer := diffFiles(t, diffOld, diffNew)
	code, out, stderr := sluice("diff", "-c", path, older, newer)
	const want = `DEFINITION    CHANGE
stream gone   dropped
stream lists  kept
stream logs   added
stream new    added
stream todos  changed

TABLE TO COPY  ROWS               SIZE
app.notes      not in the source  -
public.log_1   ~0                 ~0 B
public.log_2   ?                  ?
public.todos   ~300000            ~50 MiB

~300000 rows, ~50 MiB, and 1 tables of which the source has no statistics yet (ANALYZE makes them).
They are copied for what is added or changed, while clients are served what there is. Then clients connect again,
download that, and keep what they have of the rest.
`
	if code != 1 || out != want || stderr != "" {
		t.Errorf("%d %s\n%s\nwant\n%s", code, stderr, out, want)
	}

	code, out, stderr = sluice("diff", "-c", path, "--json", "--offline", older, newer)
	var x difference
	if err := json.Unmarshal([]byte(out), &x); code != 1 || err != nil || stderr != "" {
		t.Fatalf("%d %v %s %s", code, err, out, stderr)
	}
	if x.Same || x.Copies || !x.Adds || len(x.Definitions) != 5 || x.Definitions[4] != (definitionIs{"todos", "stream", "changed"}) ||
		len(x.Tables) != 3 || x.Tables[1].Name != "log_%" || x.Tables[1].Rows != nil || x.Rows != 0 || x.Estimates != "--offline is given" {
		t.Errorf("%+v", x)
	}
}

// Of two that mean the same, nothing is to be done.
func TestDiffSame(t *testing.T) {
	path, older, newer := diffFiles(t, diffOld, "# reworded\n"+strings.Replace(diffOld, "FROM lists ", "FROM   lists ", 1))
	code, out, stderr := sluice("diff", "-c", path, older, newer)
	if code != 0 || stderr != "" || !strings.HasSuffix(out, "\nstream todos  kept\n\nThey mean the same: nothing is copied, and clients download nothing.\n") {
		t.Errorf("%d %s %s", code, out, stderr)
	}
	code, out, _ = sluice("diff", "-c", path, "--json", older, newer)
	var x difference
	if err := json.Unmarshal([]byte(out), &x); code != 0 || err != nil || !x.Same || x.Copies || len(x.Tables) != 0 {
		t.Errorf("%d %v %s", code, err, out)
	}
}

// Another conversion of values concerns all that there is.
func TestDiffValues(t *testing.T) {
	path, older, newer := diffFiles(t, diffOld, strings.Replace(diffOld, "config:\n", "config:\n  timestamps_iso8601: false\n", 1))
	code, out, stderr := sluice("diff", "-c", path, older, newer)
	if code != 1 || stderr != "" || !strings.Contains(out, "\nconversion of values  changed\n") || !strings.Contains(out, "public.lists") ||
		!strings.HasSuffix(out, "connect again and download everything that they are given.\n") {
		t.Errorf("%d %s %s", code, out, stderr)
	}
}

// What the new one needs, the old one has.
func TestDiffFits(t *testing.T) {
	path, older, newer := diffFiles(t, diffOld, strings.Replace(strings.Replace(diffOld, "  gone:\n    query: SELECT * FROM gone\n", "", 1), "todos:\n", "todos:\n    priority: 1\n", 1))
	code, out, stderr := sluice("diff", "-c", path, older, newer)
	if code != 1 || stderr != "" || !strings.Contains(out, "\nstream gone   dropped\n") || !strings.Contains(out, "\nstream todos  changed\n") ||
		!strings.HasSuffix(out, "\nAll that the new one needs is there: nothing is copied. Clients connect again, and download only what they were not\ngiven before.\n") {
		t.Errorf("%d %s %s", code, out, stderr)
	}
	// The other way it has to be made.
	if code, out, _ := sluice("diff", "-c", path, "--offline", newer, older); code != 1 || !strings.Contains(out, "TABLE TO COPY") {
		t.Errorf("%d %s", code, out)
	}
}

// TestDiffDeployed: the instance says what it would do.
func TestDiffDeployed(t *testing.T) {
	path, _, _ := diffFiles(t, "", diffNew)
	for _, c := range []struct {
		name, plan string
		code       int
		want       string
	}{
		{"another", `"copies":true,"serves":false,"reason":"they have nothing in common","replaced":""`, 1, "public.todos   ~300000"},
		{"another, for the reason", `"copies":true,"serves":false,"reason":"they have nothing in common","replaced":""`, 1,
			"\nWhat is there cannot be added to: they have nothing in common.\nAll of them are copied beside the active version"},
		{"more", `"copies":false,"serves":false,"adds":true,"tables":[{"schema":"public","name":"todos"}],"replaced":""`, 1,
			"\n~300000 rows, ~50 MiB in all, by the source's statistics.\nThey are copied for what is added or changed"},
		{"the same", `"copies":false,"serves":false,"replaced":""`, 0, "They mean the same"},
		{"all is there", `"copies":false,"serves":true,"replaced":""`, 1, "All that the new one needs is there"},
		{"another is on its way", `"copies":true,"serves":false,"replaced":"s_2"`, 1, "\ns_2, which is not active yet, is given up.\n"},
		{"the way back", `"copies":false,"serves":false,"replaced":"s_2"`, 0, "\ns_2, which is not active yet, is given up.\n"},
	} {
		text, err := json.Marshal(diffOld)
		if err != nil {
			t.Fatal(err)
		}
		diffInstance(t, `{"data":{"current":`+string(text)+`,`+c.plan+`}}`)
		code, out, stderr := sluice("diff", "-c", path, "--deployed")
		if code != c.code || !strings.Contains(out, c.want) || !strings.Contains(out, "stream todos  changed") || stderr != "" {
			t.Errorf("%s: %d %s\n%s", c.name, code, stderr, out)
		}
	}
}

func TestDiffTrouble(t *testing.T) {
	path, older, newer := diffFiles(t, diffOld, diffNew)
	bad := filepath.Join(filepath.Dir(path), "bad.yaml")
	if err := os.WriteFile(bad, []byte("streams: {s: {query: SELECT}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SLUICE_URL", "http://127.0.0.1:1")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{older}, "OLD and NEW are wanted"},
		{[]string{"--deployed", older, newer}, "OLD and NEW are wanted"},
		{[]string{older, bad}, "bad.yaml:1:"},
		{[]string{older, "gone.yaml"}, "gone.yaml"},
		{[]string{"--deployed", newer}, "reach the instance"},
	} {
		if code, out, stderr := sluice(append([]string{"diff", "-c", path}, c.args...)...); code != 2 || out != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: %d %q %q", c.args, code, out, stderr)
		}
	}
	// Without an instance the tables are listed all the same.
	if code, out, stderr := sluice("diff", "-c", path, older, newer); code != 1 || !strings.Contains(out, "How large they are is not known: reach the instance") || stderr != "" {
		t.Errorf("%d %s %s", code, out, stderr)
	}
}
