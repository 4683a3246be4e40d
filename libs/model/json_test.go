package model

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
)

// TestRealText holds ECMAScript's number format and row JSON's.
func TestRealText(t *testing.T) {
	for _, c := range []struct {
		f          float64
		text, json string
	}{
		{0, "0", "0.0"}, {math.Copysign(0, -1), "0", "0.0"}, {2, "2", "2.0"}, {-0.5, "-0.5", "-0.5"}, {0.1, "0.1", "0.1"},
		{1e21, "1e+21", "1e+21"}, {1e20, "100000000000000000000", "100000000000000000000.0"}, {1e-6, "0.000001", "0.000001"},
		{1e-7, "1e-7", "1e-7"}, {1.5e-10, "1.5e-10", "1.5e-10"}, {1e300, "1e+300", "1e+300"},
		{5e-324, "5e-324", "5e-324"}, {math.MaxFloat64, "1.7976931348623157e+308", "1.7976931348623157e+308"},
		{9007199254740993, "9007199254740992", "9007199254740992.0"}, {math.Inf(1), "Infinity", "Infinity"},
		{math.Inf(-1), "-Infinity", "-Infinity"}, {math.NaN(), "NaN", "NaN"},
	} {
		if got := string(AppendReal(nil, c.f)); got != c.text {
			t.Errorf("AppendReal(%v) = %s, want %s", c.f, got, c.text)
		}
		if got := string(AppendJSONReal(nil, c.f)); got != c.json {
			t.Errorf("AppendJSONReal(%v) = %s, want %s", c.f, got, c.json)
		}
	}
}

// FuzzAppendJSONString: encoding/json reads the text back; a lone surrogate is
// an escape, which it reads as U+FFFD.
func FuzzAppendJSONString(f *testing.F) {
	f.Add("plain text of some length, \"quoted\" \\ and\n\x01 more é😀\x7f\u2028")
	f.Add("í\xed\xa0\xbdx")
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "\xed\xa0\xbd")
		b := AppendJSONString(nil, s)
		var back string
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("%q is written %s: %v", s, b, err)
		}
		if want := strings.ReplaceAll(s, "\xed\xa0\xbd", "\ufffd"); back != want {
			t.Fatalf("%q is written %s and reads %q", s, b, back)
		}
	})
}

func TestAppendJSON(t *testing.T) {
	for _, c := range []struct {
		v    Value
		want string
	}{
		{NullValue, "null"}, {IntegerValue(-5), "-5"}, {BigIntegerValue("9223372036854775808"), "9223372036854775808"},
		{RealValue(2), "2.0"}, {TextValue("a\"\\\b\f\n\r\t\x1f\x7f/é\u2028"), `"a\"\\\b\f\n\r\t\u001f` + "\x7f/é\u2028\""},
		{TextValue("é\xed\xa0\xbd퟿"), `"é\ud83d퟿"`},
	} {
		if got := string(AppendJSON(nil, c.v)); got != c.want {
			t.Errorf("%v is written %s, want %s", c.v, got, c.want)
		}
	}
}

func BenchmarkAppendRow(b *testing.B) {
	row := []Value{
		TextValue("4b2c6a1e-5d1f-4c0e-9a5e-0242ac120002"), TextValue("A title of a usual length, in English"),
		IntegerValue(1), IntegerValue(1709210096), RealValue(12.25), NullValue,
		TextValue("2024-02-29T12:34:56.123456Z"), TextValue("user@example.com"), TextValue("é ü 😀 text"),
		TextValue(`{"a":1,"b":[1,2,3]}`),
	}
	buf := make([]byte, 0, 1024)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		buf = append(buf[:0], '{')
		for i, v := range row {
			if i > 0 {
				buf = append(buf, ',')
			}
			buf = AppendJSONString(buf, "column_name")
			buf = append(buf, ':')
			buf = AppendJSON(buf, v)
		}
		buf = append(buf, '}')
		n += len(buf)
	}
	b.SetBytes(int64(len(buf)))
}
