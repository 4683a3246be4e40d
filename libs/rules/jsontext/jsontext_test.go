package jsontext

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/rules/value"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		`{"b":1, "a":[1.0,-0,1e3,.5,"x",null,true,false], "2":0,"1":{}}`: `{"1":{},"2":0,"b":1,"a":[1.0,0,1000.0,0.5,"x",null,true,false]}`,
		`12345678901234567890`:                                 `12345678901234567890`,
		"\"q\\\"\\u00e9\\n\\/\\u001f\x7f\"":                    `"q\"é\n/\u001f` + "\x7f\"",
		`"\ud83d\ude00 \ud83d \ude00\ud83d"`:                   `"😀 \ud83d \ude00\ud83d"`,
		`{"__proto__":1,"01":2,"4294967295":3,"4294967294":4}`: `{"4294967294":4,"__proto__":1,"01":2,"4294967295":3}`,
		" [ ] ": `[]`,
		`1e400`: `Infinity`,
	} {
		n, err := Parse(in)
		if err != nil || n.Text() != want {
			t.Errorf("%s reads %s, %v; want %s", in, n.Text(), err, want)
		}
	}
	for _, in := range []string{
		"", " ", "x", "[1,]", `{"a":1,}`, `{'a':1}`, "01", "1.", "-", "-.5", "+1", "1e", "NaN", "\ufeff{}", "\"\t\"", `"\x"`, `"\u12"`,
		`"\u12g4"`, `"abc`, `{"a"}`, `{"a":}`, `{a:1}`, `[1 2]`, `[1] 2`, "nul", "\x0b1", `{"a":1,"a":1}`, `{"a":{"b":1,"b":2}}`,
		`{"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0,"8":0,"9":0,"a":0,"9":0}`, strings.Repeat("[", MaxDepth+2), "[", "{", `"\`,
	} {
		if n, err := Parse(in); err == nil {
			t.Errorf("%q reads %s", in, n.Text())
		}
	}
	if _, err := Parse(`{"k":1,"k":2}`); !errors.Is(err, errDuplicate) {
		t.Errorf("a key twice: %v", err)
	}
	if _, err := Parse(strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth)); err != nil {
		t.Errorf("depth %d: %v", MaxDepth, err)
	}
}

func TestParseHost(t *testing.T) {
	for in, want := range map[string]string{
		`{"b":1,"a":{"2":0,"1":-1.5e3},"b":9007199254740993,"big":1e21}`: `{"b":9007199254740992.0,"a":{"1":-1500.0,"2":0.0},"big":1e+21}`,
		`["\ud83d",true,null]`: `["\ud83d",true,null]`,
		"\"\xff\"":             `"\ufffd"`,
	} {
		n, err := ParseHost(in)
		want := strings.ReplaceAll(want, `\ufffd`, "\ufffd")
		if err != nil || n.Text() != want {
			t.Errorf("%s reads %s, %v; want %s", in, n.Text(), err, want)
		}
	}
}

func TestGet(t *testing.T) {
	n, err := Parse(`{"a":[1,"x😀"],"length":7,"0":2}`)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"a": `[1,"x😀"]`, "a.0": "1", "a.1.0": `"x"`, "a.1.1": `"\ud83d"`, "a.1.length": "3.0", "a.length": "2.0", "length": "7", "0": "2",
		"a.01": "", "a.2": "", "a.-1": "", "b": "", "a.1.3": "", "a.0.length": "", "a.00": "",
	} {
		got, ok, err := Find(n.Text(), strings.Split(path, "."))
		if err != nil {
			t.Fatal(err)
		}
		if ok != (want != "") || ok && got.Text() != want {
			t.Errorf("%s is %s, %v; want %s", path, got.Text(), ok, want)
		}
	}
}

// FuzzParse: what is read is written and read back the same, and whatever
// encoding/json takes is taken too, except duplicate keys and great depth.
func FuzzParse(f *testing.F) {
	f.Add(`{"b":1,"a":[1.0,-0,1e3,.5,"x\ud83d",null,true],"2":0,"1":{}}`)
	f.Add(`"\ud83d\ude00"`)
	f.Add(`[[[1e999]]]`)
	f.Fuzz(func(t *testing.T, s string) {
		s = value.FromBytes(s)
		n, err := Parse(s)
		if err != nil {
			if json.Valid([]byte(s)) && !errors.Is(err, errDuplicate) && !errors.Is(err, errDepth) {
				t.Fatalf("%q: %v", s, err)
			}
			if _, _, findErr := Find(s, []string{"a"}); findErr == nil {
				t.Fatalf("%q is found in, but does not parse: %v", s, err)
			}
			return
		}
		text := n.Text()
		if strings.Contains(text, "Infinity") { // not JSON any more
			return
		}
		back, err := Parse(text)
		if err != nil || !reflect.DeepEqual(n, back) {
			t.Fatalf("%q is written %s and reads %v, %v", s, text, back, err)
		}
		// Find is Parse and Get.
		for i, key := range append(n.Keys, "0", "length") {
			want, ok := n.Get(key)
			got, found, err := Find(s, []string{key})
			if err != nil || ok != found || !reflect.DeepEqual(got, want) {
				t.Fatalf("%d: %q of %q is %v, %v, %v; want %v, %v", i, key, s, got, found, err, want, ok)
			}
		}
		if back.Text() != text {
			t.Fatalf("%q is written %s, then %s", s, text, back.Text())
		}
	})
}

const document = `{"id":"4b2c6a1e","tags":["a","b","c"],"owner":{"name":"someone","age":42},"n":1.5,"done":false}`

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(document); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	path := []string{"owner", "name"}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok, err := Find(document, path); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
