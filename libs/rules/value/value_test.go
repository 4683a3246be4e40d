package value

import (
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sluicesync/sluice/libs/model"
)

func TestNumberRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		f := math.Float64frombits(r.Uint64())
		if math.IsNaN(f) || math.IsInf(f, 0) {
			continue
		}
		for _, s := range []string{string(model.AppendReal(nil, f)), string(model.AppendJSONReal(nil, f))} {
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
		if u := model.Surrogate(s[i:]); u != 0 {
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
