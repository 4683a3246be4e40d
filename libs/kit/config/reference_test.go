package config

import (
	"flag"
	"fmt"
	"go/ast"
	goparser "go/parser"
	"go/token"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "write the tables of docs/configuration.md")

const page = "../../../docs/configuration.md"

// block is a table of the page that is made here, of structs and fields of file.go.
var block = regexp.MustCompile(`(?ms)^<!-- Made by "make generate" of ([^>]*) -->\n(.*?)^<!-- end -->\n`)

// TestReference: the tables of docs/configuration.md are what the structs say, and
// no field that has keys is left out. (TestDocumented holds the keys against what is
// read.)
func TestReference(t *testing.T) {
	old, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	structs := fields(t)
	shown := map[string]bool{}
	text := block.ReplaceAllStringFunc(string(old), func(found string) string {
		names := block.FindStringSubmatch(found)[1]
		var b strings.Builder
		fmt.Fprintf(&b, "<!-- Made by \"make generate\" of %s -->\n| key | default | |\n|---|---|---|\n", names)
		for name := range strings.FieldsSeq(names) {
			of, only, one := strings.Cut(name, ".")
			rows := 0
			for _, f := range structs[of] {
				if !one || f.name == only {
					b.WriteString(f.row)
					shown[of+f.row] = true
					rows++
				}
			}
			if rows == 0 {
				t.Errorf("%s has no keys", name)
			}
		}
		return b.String() + "<!-- end -->\n"
	})
	for name, all := range structs {
		for _, f := range all {
			if !shown[name+f.row] {
				t.Errorf("%s.%s has keys and is in no table of docs/configuration.md", name, f.name)
			}
		}
	}
	if *rewrite {
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if text != string(old) {
		t.Errorf("docs/configuration.md is not what the structs say: make generate\n%s", text)
	}
}

// field is one that has keys.
type field struct{ name, row string }

// fields returns those of each struct in file.go, in order.
func fields(t *testing.T) map[string][]field {
	t.Helper()
	file, err := goparser.ParseFile(token.NewFileSet(), "file.go", nil, goparser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]field{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		of, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		for _, f := range of.Fields.List {
			if f.Tag == nil {
				continue
			}
			text, err := strconv.Unquote(f.Tag.Value)
			if err != nil {
				t.Fatal(err)
			}
			tag := reflect.StructTag(text)
			comment := strings.Join(strings.Fields(f.Doc.Text()), " ")
			if tag.Get("keys") == "" || comment == "" {
				t.Errorf("%s: a field with the tag %s has no keys, or no comment", spec.Name, f.Tag.Value)
			}
			name := ""
			if len(f.Names) > 0 {
				name = f.Names[0].Name
			} else if embedded, ok := f.Type.(*ast.Ident); ok {
				name = embedded.Name
			}
			found[spec.Name.Name] = append(found[spec.Name.Name], field{name, fmt.Sprintf("| `%s` | %s | %s |\n",
				strings.ReplaceAll(tag.Get("keys"), ", ", "`, `"), strings.ReplaceAll(tag.Get("default"), "'", "`"), strings.ReplaceAll(comment, "|", `\|`))})
		}
		return true
	})
	return found
}

// plain is a default that is a value, and not prose.
var plain = regexp.MustCompile(`^('[^']*'|[0-9]+|true|false)$`)

// TestDocumentedDefaults: the defaults that the tables have are those of a config that says
// nothing. (Where that is zero, whoever uses the value has the default.)
func TestDocumentedDefaults(t *testing.T) {
	f, err := Parse([]byte(`{replication: {connections: [{type: postgresql, uri: "postgresql://u:p@h/d"}]}, storage: {type: postgresql, uri: "postgresql://u:p@h/d"}}`), "t", "/", environment())
	if err != nil {
		t.Fatal(err)
	}
	f.Storage.Type = "" // was given
	checked := 0
	var check func(v reflect.Value)
	check = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				check(v.Elem())
			}
		case reflect.Slice:
			for i := range v.Len() {
				check(v.Index(i))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				of := v.Type().Field(i)
				want := strings.ReplaceAll(of.Tag.Get("default"), ",", "")
				if !plain.MatchString(want) || v.Field(i).IsZero() {
					check(v.Field(i))
					continue
				}
				var got string
				switch x := v.Field(i).Interface().(type) {
				case int, int64:
					got = fmt.Sprint(x)
				case bool:
					got = strconv.FormatBool(x)
				case string:
					got = "'" + x + "'"
				case time.Duration:
					got = fmt.Sprint(x.Seconds())
					switch {
					case strings.Contains(of.Tag.Get("keys"), "minutes"):
						got = fmt.Sprint(x.Minutes())
					case strings.HasPrefix(want, "'"):
						got = "'" + x.String() + "'"
						if d, err := time.ParseDuration(strings.Trim(want, "'")); err == nil && d == x {
							got = want
						}
					}
				case Service:
					got = "'" + x.Address + "'"
				case Compactor:
					got = "'" + x.Address + "'"
					check(v.Field(i))
				default:
					check(v.Field(i))
					continue
				}
				checked++
				if want != got && want != "'"+got+"'" {
					t.Errorf("%s.%s: the default is %s, and %s by its tag", v.Type().Name(), of.Name, got, want)
				}
			}
		}
	}
	check(reflect.ValueOf(*f))
	if checked < 20 {
		t.Errorf("only %d defaults are checked", checked)
	}
}
