package eval

import (
	"math"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// FuzzFunctions: no function, operator or cast panics, whatever its arguments;
// an error has a message, and a result has a type that SQL knows.
func FuzzFunctions(f *testing.F) {
	f.Add("2024-02-29T12:34:56Z", "subsec", int64(-3), 1.5, uint16(0x1234))
	f.Add(`{"a":[1,"x😀",null]}`, "$.a.1.length", int64(math.MinInt64), math.Inf(1), uint16(0x2341))
	f.Add("\x01\x01\x00\x00\x00", "9223372036854775808", int64(0), math.NaN(), uint16(0xffff))
	f.Fuzz(func(t *testing.T, a, b string, i int64, r float64, choice uint16) {
		pool := []model.Value{
			{}, model.NullValue, model.IntegerValue(i), model.RealValue(r), model.TextValue(value.FromBytes(a)),
			model.TextValue(value.FromBytes(b)), model.BlobValue(a), value.Integer("9223372036854775808"),
		}
		args := make([]Expr, 4)
		for n := range args {
			args[n] = Const(pool[choice>>(3*n)&7])
		}
		check := func(name string, x Expr) {
			v, err := x(&Env{})
			if err != nil && err.Error() == "" || err == nil && v.Kind() > model.BigInteger {
				t.Fatalf("%s gives %v, %v", name, v, err)
			}
		}
		for _, edition := range []int{1, 3} {
			o := Options{Edition: edition, FixedJSONExtract: edition > 1}
			for name := range functions {
				fn, ok := Function(name, o)
				for n := 0; ok && n <= len(args); n++ {
					check(name, fn.Apply(args[:n]))
				}
			}
			for _, set := range []map[string]func(x, y Expr) Expr{operators, operators3} {
				for name, op := range set {
					check(name, op(args[0], args[1]))
				}
			}
			check("->", Member(args[0], "->", pool[choice>>12&7], o))
			check("->>", Member(args[0], "->>", pool[choice>>12&7], o))
			check("IN", InJSON(args[0], args[1], false, o))
			check("IN const", InConstJSON(args[0], pool[choice>>12&7], true, o))
			check("&&", Overlap(args[0], args[1], o))
			check("ROW", In(args[0], args[1:], true))
			check("BETWEEN", Between(args[0], args[1], args[2], false))
			check("CASE", Case(args[0], []When{{args[1], args[2]}}, args[3]))
			if rows, err := JSONEach(pool[choice&7], o, nil); err == nil && len(rows) > len(a)+len(b)+1 {
				t.Fatalf("json_each gives %d rows", len(rows))
			}
		}
		for typ := TypeText; typ <= TypeBlob; typ++ {
			check("CAST", Cast(args[0], typ))
		}
	})
}
