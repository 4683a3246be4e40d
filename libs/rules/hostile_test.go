package rules

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// TestHostile holds that configs made to be costly cost in proportion to their
// length, and are compiled or refused with a place.
func TestHostile(t *testing.T) {
	repeat := strings.Repeat
	numbered := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(strings.ReplaceAll(format, "#", fmt.Sprint(i)))
		}
		return b.String()
	}
	stream := func(edition int, where string) string {
		return fmt.Sprintf("config: {edition: %d}\nstreams:\n  s:\n    auto_subscribe: true\n    query: |\n      SELECT t.id FROM t%s\n", edition, where)
	}
	data := func(query string) string {
		return "bucket_definitions:\n  b:\n    data:\n      - |\n        " + query + "\n"
	}
	const own = "a = auth.user_id()"
	const either = "(a = auth.user_id() OR b)"
	for name, x := range map[string]struct {
		config string
		class  string // of the first fatal finding, "" if there is none
	}{
		"parentheses":        {stream(3, " WHERE "+repeat("(", 50_000)+"1"+repeat(")", 50_000)), "syntax"},
		"open parentheses":   {data("SELECT id FROM t WHERE " + repeat("(", 100_000)), "syntax"},
		"NOT":                {stream(3, " WHERE "+repeat("NOT ", 50_000)+"a"), "syntax"},
		"calls":              {data("SELECT id, " + repeat("ifnull(a,", 20_000) + "1" + repeat(")", 20_000) + " AS x FROM t"), "syntax"},
		"subqueries":         {stream(3, " WHERE a IN "+repeat("(SELECT a FROM t WHERE a IN ", 5_000)+"b"+repeat(")", 5_000)), "syntax"},
		"no tokens":          {data(repeat("@ ", 100_000)), "syntax"},
		"AND":                {stream(3, " WHERE a"+repeat(" AND a", 30_000)), ""},
		"OR":                 {stream(3, " WHERE a"+repeat(" OR a", 30_000)), ""},
		"AND of matches":     {stream(3, " WHERE "+own+repeat(" AND "+own, 8_000)), ""},
		"OR of matches":      {stream(3, " WHERE "+own+repeat(" OR "+own, 8_000)), ""},
		"OR of other":        {stream(3, " WHERE a"+numbered(8_000, " OR a = auth.parameter('#')")), "too-many"},
		"AND of ORs":         {stream(3, " WHERE a"+repeat(" AND "+either, 5_000)), "too-many"},
		"edition 2, AND":     {stream(2, " WHERE "+own+repeat(" AND "+own, 8_000)), ""},
		"edition 2, OR":      {stream(2, " WHERE "+own+repeat(" OR "+own, 8_000)), ""},
		"edition 2, ORs":     {stream(2, " WHERE a"+repeat(" AND "+either, 5_000)), "too-many"},
		"tables":             {stream(3, numbered(10_000, ", u AS u#")), "too-many"},
		"chain of joins":     {stream(3, " JOIN u AS u0 ON true"+numbered(2_000, " JOIN u AS v# ON v#.a = u0.b")), "too-many"},
		"json_each":          {stream(3, numbered(2_000, ", json_each(t.a) AS e#")), "too-many"},
		"arrays":             {stream(3, " WHERE 1"+repeat(" AND auth.user_id() IN a", 5_000)), "too-many"},
		"columns":            {data("SELECT id" + numbered(20_000, ", a AS c#") + " FROM t"), ""},
		"one column":         {data("SELECT id" + repeat(", a", 50_000) + " FROM t"), ""},
		"operators":          {data("SELECT id, a" + repeat(" || a", 30_000) + " AS b FROM t"), ""},
		"members":            {data("SELECT id, a" + repeat("->'a'", 30_000) + " AS b FROM t"), ""},
		"digits":             {data("SELECT id, " + repeat("9", 200_000) + " AS b FROM t"), ""},
		"streams":            {"config: {edition: 3}\nstreams:\n" + numbered(3_000, "  s#: {query: \"SELECT id FROM t WHERE a = auth.parameter('#')\"}\n"), ""},
		"definitions":        {"bucket_definitions:\n" + numbered(3_000, "  b#: {data: [SELECT id FROM t]}\n"), ""},
		"queries":            {"config: {edition: 3}\nstreams:\n  s:\n    queries:\n" + numbered(3_000, "      - SELECT id FROM t WHERE a = auth.parameter('#')\n"), "too-many"},
		"CTEs":               {"config: {edition: 3}\nwith:\n" + numbered(2_000, "  c#: SELECT a FROM t WHERE "+own+"\n") + "streams:\n" + numbered(2_000, "  s#: {query: SELECT id FROM t WHERE a IN c#}\n"), ""},
		"uses of a CTE":      {"config: {edition: 3}\nwith:\n  c: SELECT a FROM t\nstreams:\n  s:\n    query: SELECT id FROM t WHERE a IN c" + repeat(" AND a IN c", 5_000) + "\n", "too-many"},
		"parameters":         {"bucket_definitions:\n  b:\n    parameters: SELECT 1 AS p" + numbered(3_000, ", 1 AS p#") + "\n    data:\n      - SELECT id FROM t WHERE a = bucket.p" + numbered(3_000, " AND a = bucket.p#") + "\n", ""},
		"parameter queries":  {"bucket_definitions:\n  b:\n    data: []\n    parameters:\n" + repeat("      - SELECT request.user_id() AS u\n", 5_000), ""},
		"errors":             {"bucket_definitions:\n  b:\n    data:\n" + repeat("      - SELECT nosuch(id) FROM t WHERE\n", 5_000), "syntax"},
		"keys":               {"bucket_definitions:\n  b:\n    data: []\n" + numbered(10_000, "    k#: 1\n"), "unknown-key"},
		"equal keys":         {"bucket_definitions:\n" + repeat("  b: {data: []}\n", 10_000), "duplicate-key"},
		"nested collections": {"bucket_definitions: " + repeat("{a: ", 50_000) + repeat("}", 50_000), "yaml"},
		"open collections":   {repeat("[", 100_000), "yaml"},
	} {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, ds := Compile(x.config, Options{})
		runtime.ReadMemStats(&after)
		class := ""
		for _, d := range ds {
			if d.Fatal && class == "" {
				if class = d.Class; d.Line == 0 {
					t.Errorf("%s: no place: %s", name, d.Message)
				}
			}
		}
		if class != x.class {
			t.Errorf("%s: found %q, want %q: %.200v", name, class, x.class, ds)
		}
		const perByte = 4 << 10
		if used := (after.TotalAlloc - before.TotalAlloc) / uint64(len(x.config)); used > perByte {
			t.Errorf("%s: %d bytes of memory for each byte of the config", name, used)
		}
	}
}
