package value

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sluicesync/sluice/libs/model"
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

func TestNumberRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		f := math.Float64frombits(r.Uint64())
		if math.IsNaN(f) || math.IsInf(f, 0) {
			continue
		}
		for _, s := range []string{string(AppendReal(nil, f)), string(AppendJSONReal(nil, f))} {
			back, err := strconv.ParseFloat(s, 64)
			if err != nil || back != f {
				t.Fatalf("%v is written %s and reads %v, %v", f, s, back, err)
			}
			if v := CastReal(model.TextValue(s)); v.Float() != f {
				t.Fatalf("%s casts to %v", s, v.Float())
			}
		}
		i := int64(r.Uint64()) >> r.IntN(64)
		if v := CastNumeric(model.TextValue(Text(model.IntegerValue(i)))); v != model.IntegerValue(i) {
			t.Fatalf("%d casts to %v", i, v)
		}
	}
}

// interesting returns a value of any class but NULL, often a troublesome one.
func interesting(r *rand.Rand) model.Value {
	ints := []int64{0, 1, -1, 1 << 53, 1<<53 + 1, math.MaxInt64, math.MinInt64, 42}
	reals := []float64{0, 1, -1, 1 << 53, 1 << 63, -(1 << 63), 1e300, -1e300, 0.5, 42, math.Inf(1), math.Inf(-1)}
	texts := []string{"", "a", "b", "é", "｡", "😀", "\xed\xa0\xbd", "\xed\xb8\x80", "a😀", "a\xed\xa0\xbd", "ab"}
	switch r.IntN(4) {
	case 0:
		return model.IntegerValue(ints[r.IntN(len(ints))])
	case 1:
		return model.RealValue(reals[r.IntN(len(reals))])
	case 2:
		return Integer([]string{"9223372036854775808", "-9223372036854775809", "1" + strings.Repeat("0", 300)}[r.IntN(3)])
	}
	return model.TextValue(texts[r.IntN(len(texts))])
}

func TestCompareLaws(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	sign := func(n int) int { return max(-1, min(1, n)) }
	compare := func(a, b model.Value) int {
		c, err := Compare(a, b)
		if err != nil {
			t.Fatal(err)
		}
		if equal, _ := Equal(a, b); equal != (c == 0) {
			t.Fatalf("Equal and Compare of %v, %v disagree", a, b)
		}
		return sign(c)
	}
	for range 50000 {
		a, b, c := interesting(r), interesting(r), interesting(r)
		ab, ba, bc, ac := compare(a, b), compare(b, a), compare(b, c), compare(a, c)
		if ab != -ba {
			t.Fatalf("%v and %v compare %d and %d", a, b, ab, ba)
		}
		if ab <= 0 && bc <= 0 && ac > 0 {
			t.Fatalf("%v, %v, %v are not transitive", a, b, c)
		}
		if compare(a, a) != 0 {
			t.Fatalf("%v is not itself", a)
		}
		if a.Kind() == model.Text && b.Kind() == model.Text {
			if want := sign(compareUnits(units(a.Str()), units(b.Str()))); ab != want {
				t.Fatalf("%q and %q compare %d, want %d", a.Str(), b.Str(), ab, want)
			}
		}
	}
	blob := model.BlobValue("x")
	if _, err := Compare(blob, blob); err == nil {
		t.Error("two blobs compare")
	}
	if c, err := Compare(blob, model.TextValue("x")); c <= 0 || err != nil {
		t.Errorf("blob and text compare %d, %v", c, err)
	}
}

// units is the plain way to UTF-16.
func units(s string) []uint16 {
	var us []uint16
	for i := 0; i < len(s); {
		if u := surrogateAt(s[i:]); u != 0 {
			us = append(us, u)
			i += 3
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r > 0xffff {
			us = append(us, 0xd800+uint16((r-0x10000)>>10), 0xdc00+uint16((r-0x10000)&0x3ff))
		} else {
			us = append(us, uint16(r))
		}
		i += n
	}
	return us
}

func compareUnits(a, b []uint16) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return int(a[i]) - int(b[i])
		}
	}
	return len(a) - len(b)
}

func TestCase(t *testing.T) {
	for _, c := range [][3]string{
		{"straße ŉ ﬁ ı", "STRASSE ʼN FI I", "straße ŉ ﬁ ı"},
		{"İSTANBUL ΑΣ ΑΣ. ΣΑ", "İSTANBUL ΑΣ ΑΣ. ΣΑ", "i̇stanbul ας ας. σα"},
		{"a\xed\xa0\xbdB", "A\xed\xa0\xbdB", "a\xed\xa0\xbdb"},
		{"ǅx", "ǄX", "ǆx"},
	} {
		if got := ToUpper(c[0]); got != c[1] {
			t.Errorf("ToUpper(%q) = %q, want %q", c[0], got, c[1])
		}
		if got := ToLower(c[0]); got != c[2] {
			t.Errorf("ToLower(%q) = %q, want %q", c[0], got, c[2])
		}
	}
}

func TestFromBytes(t *testing.T) {
	for in, want := range map[string]string{
		"abc": "abc", "\x00\xff\x10": "\x00\ufffd\x10", "\xe2\x82": "\ufffd", "\xf0\x9f\x98": "\ufffd", "\xed\xa0\x80": "\ufffd\ufffd\ufffd",
		"\xf0\x80\x80": "\ufffd\ufffd\ufffd", "\xe2\x82a\xc2": "\ufffda\ufffd", "\xc0\xaf": "\ufffd\ufffd",
	} {
		if got := FromBytes(in); got != want {
			t.Errorf("FromBytes(%x) = %q, want %q", in, got, want)
		}
	}
	if got := Bytes("a\xed\xa0\xbdé"); got != "a\ufffdé" {
		t.Errorf("Bytes: %q", got)
	}
}

// FuzzSlice: cutting anywhere and joining again gives the text, and the parts
// have the lengths asked for.
func FuzzSlice(f *testing.F) {
	f.Add("é😀xyz", 2)
	f.Add("a\xed\xa0\xbd", 1)
	f.Fuzz(func(t *testing.T, s string, at int) {
		s = FromBytes(s)
		n := Length(s)
		if n != len(units(s)) {
			t.Fatalf("%q has length %d, want %d", s, n, len(units(s)))
		}
		if at < 0 || at > n {
			return
		}
		a, b := Slice(s, 0, int64(at)), Slice(s, int64(at), math.MaxInt64)
		if Length(a) != at || Length(b) != n-at || Concat(a, b) != s {
			t.Fatalf("%q cut at %d is %q and %q", s, at, a, b)
		}
		for i := range n {
			one := Slice(s, int64(i), int64(i+1))
			if u := units(one); len(u) != 1 || u[0] != units(s)[i] {
				t.Fatalf("unit %d of %q is %q", i, s, one)
			}
			if j := Index(s, one); j < 0 || units(s)[j] != units(s)[i] {
				t.Fatalf("%q is at %d of %q", one, j, s)
			}
		}
	})
}

// FuzzAppendJSON: text reads back, and encoding/json agrees on what it is.
func FuzzAppendJSON(f *testing.F) {
	f.Add("plain text of some length, \"quoted\" \\ and\n\x01 more é😀\x7f\u2028")
	f.Add("í\xed\xa0\xbdx")
	f.Fuzz(func(t *testing.T, s string) {
		if !hasSurrogate(s) {
			s = FromBytes(s)
		}
		b := AppendString(nil, s)
		var back string
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("%q is written %s: %v", s, b, err)
		}
		if want := FromBytes(Bytes(s)); back != want && !hasSurrogate(s) {
			t.Fatalf("%q is written %s and reads %q", s, b, back)
		}
	})
}

// TestArithmetic holds that integers grow instead of overflowing.
func TestArithmetic(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 20000 {
		a, b := interesting(r), interesting(r)
		if a.Kind() == model.Text || b.Kind() == model.Text {
			continue
		}
		sum := Add(a, b)
		if sum.Kind() != model.Real {
			if back := Subtract(sum, b); back != a {
				t.Fatalf("%v + %v - %v = %v", a, b, b, back)
			}
			if product := Multiply(a, b); !isZero(b) {
				if back := Divide(product, b); back != a {
					t.Fatalf("%v * %v / %v = %v", a, b, b, back)
				}
			}
		}
	}
}

func BenchmarkAppendRow(b *testing.B) {
	row := []model.Value{
		model.TextValue("4b2c6a1e-5d1f-4c0e-9a5e-0242ac120002"), model.TextValue("A title of a usual length, in English"),
		model.IntegerValue(1), model.IntegerValue(1709210096), model.RealValue(12.25), model.NullValue,
		model.TextValue("2024-02-29T12:34:56.123456Z"), model.TextValue("user@example.com"), model.TextValue("é ü 😀 text"),
		model.TextValue(`{"a":1,"b":[1,2,3]}`),
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
			buf = AppendString(buf, "column_name")
			buf = append(buf, ':')
			buf = AppendJSON(buf, v)
		}
		buf = append(buf, '}')
		n += len(buf)
	}
	b.SetBytes(int64(len(buf)))
}
