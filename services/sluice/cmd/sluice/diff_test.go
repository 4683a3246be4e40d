package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/rules"
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

// diffInstance answers as an instance does; current is the reply of current.
func diffInstance(t *testing.T, current string) {
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
		case "GET /api/sync-rules/v1/current":
			fmt.Fprint(w, current)
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
public.lists   ~1200              ~96 KiB
public.log_1   ~0                 ~0 B
public.log_2   ?                  ?
public.todos   ~300000            ~50 MiB

~301200 rows, ~50.1 MiB, and 1 tables of which the source has no statistics yet (ANALYZE makes them).
All of them are copied beside the active version, for the definitions that are kept too. When that is done, clients
connect again and download everything that they are given.
`
	if code != 1 || out != want || stderr != "" {
		t.Errorf("%d %s\n%s\nwant\n%s", code, stderr, out, want)
	}

	code, out, stderr = sluice("diff", "-c", path, "--json", "--offline", older, newer)
	var x difference
	if err := json.Unmarshal([]byte(out), &x); code != 1 || err != nil || stderr != "" {
		t.Fatalf("%d %v %s %s", code, err, out, stderr)
	}
	if x.Same || x.Download != "everything" || len(x.Definitions) != 5 || x.Definitions[4] != (definitionIs{"todos", "stream", "changed"}) ||
		len(x.Tables) != 4 || x.Tables[2].Name != "log_%" || x.Tables[2].Rows != nil || x.Rows != 0 || x.Estimates != "--offline is given" {
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
	if err := json.Unmarshal([]byte(out), &x); code != 0 || err != nil || !x.Same || x.Download != "nothing" || len(x.Tables) != 0 {
		t.Errorf("%d %v %s", code, err, out)
	}
}

// TestDiffDeployed: what is deployed compares by what the instance knows of it,
// as deploying does.
func TestDiffDeployed(t *testing.T) {
	path, _, _ := diffFiles(t, "", diffNew)
	plan, _ := rules.Compile(diffNew, rules.Options{})
	identity := fmt.Sprintf("%x", plan.Identity())
	config := func(text, identity string) string {
		b, err := json.Marshal(map[string]string{"slot_name": "s_1", "content": text, "identity": identity})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct {
		name, current, next string
		code                int
		want                string
	}{
		{"another", config(diffOld, "x"), "null", 1, "stream todos  changed"},
		{"the same content", config("# old\n"+diffNew, identity), "null", 0, "They mean the same"},
		{"the same text, of an older version", config(diffNew, ""), "null", 0, "They mean the same"},
		{"another text, of an older version", config("# old\n"+diffNew, ""), "null", 1, "stream todos  kept"},
		{"another is on its way", config(diffOld, "x"), config(diffOld+"#", "x"), 1, "s_1, which is not active yet, is given up"},
		{"the way back", config(diffNew, identity), config(diffOld, "x"), 0, "s_1, which is not active yet, is given up"},
	} {
		diffInstance(t, `{"data":{"current":`+c.current+`,"next":`+c.next+`}}`)
		if code, out, stderr := sluice("diff", "-c", path, "--deployed"); code != c.code || !strings.Contains(out, c.want) || stderr != "" {
			t.Errorf("%s: %d %s\n%s", c.name, code, stderr, out)
		}
	}
	diffInstance(t, `{"data":{"current":`+config(diffOld, "x")+`,"next":`+config("# "+diffNew, identity)+`}}`)
	if code, out, _ := sluice("diff", "-c", path, "--deployed"); code != 1 || strings.Contains(out, "given up") {
		t.Errorf("the same is on its way: %d %s", code, out)
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
