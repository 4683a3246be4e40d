package conformance

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestVectors holds that every enforced check of the public vectors passes.
func TestVectors(t *testing.T) {
	files, err := Load("../testdata/conformance")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(files, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Failures {
		t.Error(f)
	}
	if passed, _ := r.Totals(); passed < 15000 {
		t.Errorf("only %d checks passed: vectors are missing", passed)
	}
}

// TestReportsDifferences holds that the runner notices what differs, at each
// level: a runner that compares nothing would pass every vector.
func TestReportsDifferences(t *testing.T) {
	vector := `{"name": "x", "config": "bucket_definitions:\n  b:\n    data:\n      - SELECT id FROM t\n",
		"options": {"default_schema": "public"},
		"rows": [{"table": "t", "record": {"id": "a"}}], "requests": [{"token": {"sub": "u"}}],
		"expect": {"accepted": true, "diagnostics": [],
			"rows": [{"data": [{"bucket": "b[]", "table": "t", "id": "a", "data": "{\"id\":\"a\"}"}]}],
			"requests": [{"buckets": [{"bucket": "b[]", "priority": 3, "definition": "b", "reasons": ["default"]}],
				"synced": [{"table": "t", "id": "a", "data": "{\"id\":\"a\"}"}]}]}}`
	run := func(v string) *Report {
		r, err := Run([]File{{Format: 1, Area: "x", Vectors: []json.RawMessage{json.RawMessage(v)}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := run(vector); len(r.Failures) > 0 {
		t.Fatal(r.Failures)
	}
	for level, change := range map[string][2]string{
		"level 1": {`"accepted": true`, `"accepted": false`},
		"level 2": {`"table": "t", "id": "a", "data": "{\"id\":\"a\"}"}]}],`, `"table": "t", "id": "a", "data": "{\"id\":\"b\"}"}]}],`},
		"level 3": {`"synced": [{"table": "t"`, `"synced": [{"table": "u"`},
		"level 4": {`"priority": 3`, `"priority": 2`},
		"level 5": {`"buckets": [{"bucket": "b[]"`, `"buckets": [{"bucket": "c[]"`},
	} {
		r := run(strings.Replace(vector, change[0], change[1], 1))
		if len(r.Failures) == 0 || !strings.Contains(strings.Join(r.Failures, "\n"), level) {
			t.Errorf("a change of %s is not noticed: %v", level, r.Failures)
		}
	}
}
