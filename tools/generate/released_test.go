package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const before = `syntax = "proto3";
package sluice.v1;
service S {
  rpc Call(A) returns (B);
}
enum E {
  ZERO = 0;
  ONE = 1;
}
message A {
  reserved 7, 9;
  int64 number = 1;
  repeated string names = 2;
  oneof choice {
    string text = 3;
  }
  message Within {
    E e = 1;
  }
}
message B {}
`

// TestReleased: what was added to a release passes, whatever else was changed does
// not, and the message says where.
func TestReleased(t *testing.T) {
	for _, c := range []struct{ name, from, to, want string }{
		{"Nothing", "", "", ""},
		{"Comments", "message B {}", "// Nothing yet.\nmessage B {} // none", ""},
		{"Field", "message B {}", "message B {\n  A a = 1;\n}", ""},
		{"FieldOfOneof", "string text = 3;", "string text = 3;\n    bytes other = 4;", ""},
		{"Value", "ONE = 1;", "ONE = 1;\n  TWO = 2;", ""},
		{"Call", "returns (B);", "returns (B);\n  rpc More(stream A) returns (B);", ""},
		{"Reserved", "7, 9", "7, 8, 9", ""},
		{"Message", "message B {}", "message B {}\nmessage C {}", ""},
		{"LessField", "  int64 number = 1;\n", "", "/sluice/v1/s.proto/A/number is not there any more"},
		{"LessValue", "  ONE = 1;\n", "", "/E/ONE is not there"},
		{"LessCall", "  rpc Call(A) returns (B);\n", "", "/S/Call is not there"},
		{"LessReserved", "7, 9", "9", "A has lost"},
		{"Renumbered", "number = 1", "number = 5", "/A/number: number was 1 and is 5"},
		{"OtherType", "int64 number", "string number", "/A/number: type was"},
		{"OtherLabel", "repeated string", "string", "/A/names: label was"},
		{"OtherName", "names = 2", "them = 2", "/A/names is not there"},
		{"OtherStream", "returns (B)", "returns (stream B)", "/S/Call: server_streaming was"},
		{"OtherOneof", "  oneof choice {\n    string text = 3;\n  }", "  string text = 3;", "/A/text: oneof_index was"},
		{"Nested", "E e = 1", "E e = 2", "/A/Within/e: number was 1 and is 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "sluice", "v1", "s.proto")
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			after := strings.Replace(before, c.from, c.to, 1)
			if c.from != "" && after == before {
				t.Fatalf("%q is not in the example", c.from)
			}
			write := func(text string) {
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			released := filepath.Join(dir, "released")
			write(before)
			if err := run(dir, "", released); err != nil {
				t.Fatal(err)
			}
			write(after)
			err := run(dir, released, "")
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
