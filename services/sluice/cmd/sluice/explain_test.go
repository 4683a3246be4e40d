package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const explained = `
config:
  edition: 3
streams:
  lists:
    auto_subscribe: true
    query: SELECT * FROM lists WHERE owner_id = auth.user_id()
  todos:
    query: SELECT * FROM todos WHERE list_id = subscription.parameter('list')
      AND list_id IN (SELECT id FROM lists WHERE owner_id = auth.user_id())
  audit:
    auto_subscribe: true
    query: SELECT * FROM audit WHERE auth.parameter('role') = 'admin'
  region:
    auto_subscribe: true
    query: SELECT * FROM archive.shops WHERE n = connection.parameter('n') AND auth.user_id() IN json_extract(tags, '$.u')
`

func TestExplain(t *testing.T) {
	path := files(t, service, explained)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{
			"--token-claims", `{"sub":"u1"}`, "--subscription", `todos={"list":"l1"}`, "--no-defaults",
			"--index", `lists={"id":"l1","owner_id":"u1"}`, "--table", "todos", "--row", `{"id":"t1","list_id":"l1"}`,
		}, `stream lists
  not subscribed to, and not subscribed automatically
  does not sync the table public.todos
stream todos
  subscription 0:
    todos|0["l1"]
  the row is in todos|0["l1"]
stream audit
  not subscribed to, and not subscribed automatically
  does not sync the table public.todos
stream region
  not subscribed to, and not subscribed automatically
  does not sync the table public.todos
the user gets the row, in todos|0["l1"]
`},
		// The row itself is found, too; numbers are exact, objects JSON.
		{[]string{
			"--token-claims", `{"sub":"u1","role":"admin"}`, "--parameters", `{"n":7}`, "--subscription", `todos={"list":"l1"}`, "--subscription", "todoz",
			"--table", "archive.shops", "--row", `{"id":"s","n":7,"big":9223372036854775808,"r":1.5,"b":true,"x":null,"tags":{"u":["<u1>","u1"]}}`,
		}, `stream lists
  by default:
    lists|0["u1"]
  does not sync the table archive.shops
stream todos
  subscription 0:
    todos|0: not given, for there is nothing in public.lists where #0 = owner_id, with #0 = auth.user_id()
  does not sync the table archive.shops
stream audit
  by default:
    audit|0[]
  does not sync the table archive.shops
stream region
  by default:
    region|0[7,"u1"]
  the row is in region|0[7,"<u1>"]
  the row is in region|0[7,"u1"]
subscription 1: there is no stream todoz; is it todos?
the user gets the row, in region|0[7,"u1"]
note: the source's own rows are not looked at; parameter queries, joins and subqueries find what --row and --index give
`},
		// What cannot be used is told.
		{[]string{"--token-claims", `{"sub":"u1"}`, "--no-defaults", "--table", "todo", "--row", `{}`, "--index", "bad={}"}, `stream lists
  not subscribed to, and not subscribed automatically
  does not sync the table public.todo
stream todos
  not subscribed to, and not subscribed automatically
  does not sync the table public.todo
stream audit
  not subscribed to, and not subscribed automatically
  does not sync the table public.todo
stream region
  not subscribed to, and not subscribed automatically
  does not sync the table public.todo
the user does not get the row: it is in no bucket
note: the sync config does not read the table public.todo
note: the sync config does not read the table public.bad
`},
	} {
		code, out, stderr := sluice(append([]string{"explain", "-c", path}, c.args...)...)
		if code != 0 || stderr != "" || out != c.want {
			t.Errorf("%d %s\n%s\nexpected\n%s", code, stderr, out, c.want)
		}
	}
}

// For programs there are the buckets, and what was not asked is not there.
func TestExplainJSON(t *testing.T) {
	path := files(t, service, explained)
	for _, c := range []struct {
		args                  []string
		buckets, row, getsRow string
	}{
		{[]string{"--token-claims", `{"sub":"u1","role":"admin"}`, "--table", "lists", "--row", `{"id":"l1","owner_id":"u1"}`},
			`["audit|0[]","lists|0[\"u1\"]"]`, `["lists|0[\"u1\"]"]`, "true"},
		{[]string{"--token-claims", `{"sub":"u2"}`, "--table", "lists", "--row", `{"id":"l1","owner_id":"u1"}`}, `["lists|0[\"u2\"]"]`, `["lists|0[\"u1\"]"]`, "false"},
		{[]string{"--token-claims", `{"sub":"u1"}`, "--no-defaults"}, "[]", "", ""},
		{[]string{"--table", "other", "--row", `{"id":"x"}`}, "", "[]", ""},
	} {
		code, out, stderr := sluice(append([]string{"explain", "--json", "-c", path}, c.args...)...)
		var got map[string]json.RawMessage
		if err := json.Unmarshal([]byte(out), &got); code != 0 || stderr != "" || err != nil {
			t.Fatalf("%d %s %v\n%s", code, stderr, err, out)
		}
		if string(got["buckets"]) != c.buckets || string(got["row_buckets"]) != c.row || string(got["gets_row"]) != c.getsRow || len(got["text"]) < 20 || got["notes"] == nil {
			t.Errorf("%q: %s", c.args, out)
		}
	}
}

func TestExplainRefuses(t *testing.T) {
	path := files(t, service, explained)
	bad := files(t, service, "streams: {s: {query: SELECT}}\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-c", path}, "give --token-claims, or --table and --row"},
		{[]string{"-c", path, "--row", "{}"}, "--table and --row belong together"},
		{[]string{"-c", path, "--table", "t", "--row", "{}", "--subscription", "s"}, "need --token-claims"},
		{[]string{"-c", path, "--token-claims", "[]"}, "--token-claims: not a JSON object"},
		{[]string{"-c", path, "--token-claims", "{}{}"}, "--token-claims: not a JSON object"},
		{[]string{"-c", path, "--token-claims", "{}", "--parameters", "{"}, "--parameters: not JSON"},
		{[]string{"-c", path, "--token-claims", "{}", "--subscription", "todos=1"}, "--subscription todos: not a JSON object"},
		{[]string{"-c", path, "--table", "t", "--row", `{"a":1e999}`}, "column a: 1e999 is too large"},
		{[]string{"-c", path, "--token-claims", "{}", "--index", "lists"}, "--index lists: it must be TABLE=JSON"},
		{[]string{"-c", bad, "--token-claims", "{}"}, "sync.yaml:1:"},
		{[]string{"-c", path, "--token-claims", "{}", "--sync-config", "gone.yaml"}, "gone.yaml"},
		{[]string{"-c", "gone.yaml", "--sync-config", filepath.Join(filepath.Dir(path), "sync.yaml"), "--token-claims", "{}"}, "gone.yaml"},
	} {
		code, out, stderr := sluice(append([]string{"explain"}, c.args...)...)
		if code != 1 || out != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: %d %q %q", c.args, code, out, stderr)
		}
	}
}

// A row that a parameter query cannot be evaluated for is told, too.
func TestExplainRowError(t *testing.T) {
	path := files(t, service, "bucket_definitions:\n  b:\n    parameters: SELECT id FROM lists WHERE j ->> 'o' = request.user_id()\n    data: [SELECT * FROM t WHERE l = bucket.id]\n")
	code, out, stderr := sluice("explain", "-c", path, "--token-claims", `{"sub":"u1"}`, "--index", `lists={"id":"l1","j":"{"}`)
	if code != 0 || !strings.Contains(out, "\nnote: the row of public.lists is not to be found by b: ") || !strings.Contains(out, "\nnote: the source's own rows") {
		t.Errorf("%d %s %s", code, out, stderr)
	}
}

// A sync config alone is enough.
func TestExplainSyncConfig(t *testing.T) {
	t.Chdir(filepath.Dir(files(t, "x: [", "bucket_definitions:\n  mine:\n    parameters: SELECT request.user_id() AS u\n    data: [SELECT * FROM t WHERE o = bucket.u]\n")))
	code, out, stderr := sluice("explain", "--sync-config", "sync.yaml", "--token-claims", `{"sub":"u1"}`)
	if code != 0 || out != "bucket definition mine\n  by default:\n    mine[\"u1\"]\n" || !strings.Contains(stderr, "taken to be in public") {
		t.Errorf("%d %q %q", code, out, stderr)
	}
}

// TestExplainDocs holds that docs/sync-config.md shows what explain prints.
func TestExplainDocs(t *testing.T) {
	b, err := os.ReadFile("../../../../docs/sync-config.md")
	if err != nil {
		t.Fatal(err)
	}
	docs := string(b)
	_, config, _ := strings.Cut(docs, "```yaml\n")
	config, _, _ = strings.Cut(config, "```")
	path := files(t, service, config)
	shown := strings.Split(docs, "```console\n$ sluice explain ")[1:]
	if len(shown) < 2 {
		t.Errorf("only %d examples", len(shown))
	}
	for _, example := range shown {
		example, _, _ = strings.Cut(example, "```")
		command, want, _ := strings.Cut(example, "\n")
		args := []string{"explain", "-c", path}
		for i, part := range strings.Split(command, "'") { // every other one is quoted
			if i%2 == 0 {
				args = append(args, strings.Fields(part)...)
			} else {
				args = append(args, part)
			}
		}
		if code, out, stderr := sluice(args...); code != 0 || out != want {
			t.Errorf("%s: %d %s\n%s\nexpected\n%s", command, code, stderr, out, want)
		}
	}
}
