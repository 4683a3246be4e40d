package rules

import (
	"os"
	"strings"
	"testing"
)

// TestDocs holds that each example of docs/sync-config.md compiles.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/sync-config.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := strings.Split(string(text), "```yaml\n")[1:]
	if len(examples) < 8 {
		t.Errorf("only %d examples", len(examples))
	}
	for _, e := range examples {
		e, _, _ = strings.Cut(e, "```")
		p, ds := Compile(e, Options{})
		if p == nil || len(ds) > 0 {
			t.Errorf("%s\n%s", e, underline(e, ds))
		}
	}
}
