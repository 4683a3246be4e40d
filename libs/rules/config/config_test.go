package config

import (
	"strings"
	"testing"
)

// scalars are data items in every style; each decodes to a text with the word
// WORD, whose place must be found again.
var scalars = []string{
	"- SELECT WORD FROM t",
	"- 'SELECT ''q'' WORD FROM t'",
	`- "SELECT \"q\" \u00e9\x41\t WORD FROM t"`,
	"- \"SELECT\n     a,\n\n     WORD FROM t\"",
	"- 'SELECT\n     a,\n\n     WORD FROM t'",
	"- \"SELECT \\\n     WORD FROM t\"",
	"- SELECT a,\n     b,\n\n     WORD FROM t",
	"- |\n      SELECT a,\n        WORD\n      FROM t",
	"- |-\n      SELECT a,\n\n        WORD\n      FROM t",
	"- >\n      SELECT a,\n      WORD\n\n      FROM t",
	"- >-\n      SELECT a,\n\n\n      b\n        indented\n      WORD FROM t",
	"- |2\n        SELECT a,\n        WORD FROM t",
	"- | # a comment\n      SELECT a,\n      WORD FROM t",
	"- !!str SELECT WORD FROM t",
	"- &anchor SELECT WORD FROM t",
	"- &anchor |\n      SELECT WORD FROM t",
	"- 'ü😀 WORD'",
	"- ü😀 WORD",
	"- \"\\U0001f600 WORD\"",
}

// TestScalarOffsets holds that the bytes of a text lead back to their place.
func TestScalarOffsets(t *testing.T) {
	for _, newline := range []string{"\n", "\r\n"} {
		for _, s := range scalars {
			for _, bom := range []string{"", "\ufeff"} {
				src := bom + strings.ReplaceAll("bucket_definitions:\n  b:\n    data:\n    "+s+"\n", "\n", newline)
				c, findings := Parse(src)
				if len(findings) > 0 || len(c.Buckets) != 1 || len(c.Buckets[0].Data) != 1 {
					t.Errorf("%q: %v", src, findings)
					continue
				}
				text := c.Buckets[0].Data[0]
				i := strings.Index(text.Value, "WORD")
				at := text.Span(i, i+4)
				if i < 0 || src[at.Start:at.End] != "WORD" {
					t.Errorf("%q: %q leads to %q", src, text.Value, src[at.Start:at.End])
				}
			}
		}
	}
}

// TestFlow holds it for flow collections, where scalars end at indicators.
func TestFlow(t *testing.T) {
	src := `{bucket_definitions: {b: {data: [SELECT WORD FROM t, "SELECT WORD"]}}}`
	c, findings := Parse(src)
	if len(findings) > 0 {
		t.Fatal(findings)
	}
	for _, text := range c.Buckets[0].Data {
		i := strings.Index(text.Value, "WORD")
		if at := text.Span(i, i+4); src[at.Start:at.End] != "WORD" {
			t.Errorf("%q leads to %q", text.Value, src[at.Start:at.End])
		}
	}
}

// TestDiagnostics holds that all problems are found in one go.
func TestDiagnostics(t *testing.T) {
	_, findings := Parse(`
config: {edition: "3", nonsense: 1}
bucket_definitions:
  b: {priority: 9, datta: []}
  b: 7
event_definitions: {e: {}}
`)
	var got []string
	for _, f := range findings {
		got = append(got, f.Class)
	}
	want := "duplicate-key yaml-shape unknown-key priority unknown-key missing-key yaml-shape missing-key"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("found %s\nwant  %s", s, want)
	}
}

// TestSyntaxErrors holds that text that is no YAML is reported where it goes
// wrong: what is not closed, at the end.
func TestSyntaxErrors(t *testing.T) {
	for src, line := range map[string]int{
		"a: {\n":                            2,
		"a: {b: {data: [SELECT 1\n":         2,
		"a:\n  b: \"\n":                     3,
		"a:\n  b: 'x\n  c: 1\n":             4,
		"a:\n  b:\n    - c\n   - d\ne: 1\n": 4,
		"a: }\n":                            1,
		"a:\n\tb: 1\n":                      2,
	} {
		_, f := Parse(src)
		if len(f) != 1 || f[0].Class != "yaml" || 1+strings.Count(src[:f[0].At.Start], "\n") != line {
			t.Errorf("%q: found %+v, want line %d", src, f, line)
		}
	}
}

// TestBounds holds that documents that are too large or too deep are refused.
func TestBounds(t *testing.T) {
	for name, src := range map[string]string{
		"too-large": strings.Repeat("#", MaxSize+1),
		"too-deep":  "a: " + strings.Repeat("[", MaxDepth+2) + strings.Repeat("]", MaxDepth+2),
	} {
		if _, f := Parse(src); len(f) != 1 || f[0].Class != name {
			t.Errorf("%s: found %v", name, f)
		}
	}
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'z'; c++ {
		bomb += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+",", 8) + "*" + string(c-1) + "]\n"
	}
	if _, f := Parse(bomb + "bucket_definitions: *y\n"); len(f) == 0 {
		t.Error("an alias bomb is accepted")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range scalars {
		f.Add("bucket_definitions:\n  b:\n    data:\n    " + s + "\n")
	}
	f.Add("config: {edition: 3}\nwith: {a: SELECT 1}\nstreams: {s: {queries: [x], with: {b: y}, priority: 2, auto_subscribe: true}}\n")
	f.Fuzz(func(t *testing.T, src string) {
		c, findings := Parse(src)
		for _, x := range findings {
			if x.At != None && (x.At.Start < 0 || x.At.End < x.At.Start || x.At.End > len(src)) {
				t.Fatalf("%+v is not within the text", x)
			}
		}
		check := func(text Text) {
			for i := range len(text.Value) {
				if at := text.Offset(i); at < 0 || at > len(src) {
					t.Fatalf("byte %d of %q leads to %d", i, text.Value, at)
				}
				if i > 0 && text.Offset(i) < text.Offset(i-1) {
					t.Fatalf("byte %d of %q leads back to %d", i, text.Value, text.Offset(i))
				}
			}
		}
		for _, b := range c.Buckets {
			for _, text := range append(b.Data, b.Parameters...) {
				check(text)
			}
		}
		for _, s := range c.Streams {
			for _, text := range s.Queries {
				check(text)
			}
		}
	})
}
