package date

import (
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"2024-02-29":                      "2024-02-29 00:00:00.000",
		"2024-02-29 12:34":                "2024-02-29 12:34:00.000",
		"2024-02-29 12:34:56.789012":      "2024-02-29 12:34:56.789",
		"2024-02-29T12:34:56.5Z":          "2024-02-29 12:34:56.500",
		"2024-02-29T12:34:56+02:00":       "2024-02-29 10:34:56.000",
		"2024-02-29 12:34:56+02":          "2024-02-29 12:34:56.000", // an offset without minutes does not count
		"2024-02-29T12:34:56-05:30":       "2024-02-29 18:04:56.000",
		"2024-02-29 24:00:00":             "2024-03-01 00:00:00.000",
		"2023-02-29":                      "2023-03-01 00:00:00.000",
		"0001-01-01":                      "2001-01-01 00:00:00.000",
		"0001-01-01T00:00:00Z":            "0001-01-01 00:00:00.000",
		"-0044-03-15":                     "2044-03-15 00:00:00.000",
		"2024-02-29 1:00":                 "2024-02-29 01:00:00.000",
		"2024T12:34":                      "2024-01-01 12:34:00.000",
		"-000000-12-29":                   "2001-12-29 00:00:00.000",
		"1:02:03:04.5 9 Feb 2024":         "2024-02-09 01:02:03.004",
		"2024-2-9":                        "2024-02-09 00:00:00.000",
		"2024/02/09":                      "2024-02-09 00:00:00.000",
		"Feb 29 2024 1:02 pm Z":           "2024-02-29 13:02:00.000",
		"Thu, 29 Feb 2024 12:34:56 GMT Z": "2024-02-29 12:34:56.000",
		"29 February 2024 (a leap (day))": "2024-02-29 00:00:00.000",
		"+012024-02-29T00:00:00Z":         "+012024-02-29 00:00:00.000",
		"-000044-03-15T00:00:00Z":         "-0044-03-15 00:00:00.000",
		"1/2/69":                          "1969-01-02 00:00:00.000",
		"2024-02-29 12:34:56+0200":        "2024-02-29 12:34:56.000",
		"2024-02-29 12:34:56.7 EST Z":     "2024-02-29 12:34:56.700",
	} {
		ms, ok := Parse(in)
		if got := Format(ms, true); !ok || got != want {
			t.Errorf("%q is %s, %v; want %s", in, got, ok, want)
		}
	}
	for _, in := range []string{
		"", "now", "garbage", "12:34:56", "2024-13-01", "2024-02-32", "2024-02-29 25:00", "2024-02-29 12:60", "2024-02-29 24:00:01",
		"2024-02-29 12:34:56 x", "1 2 3 4", "13:00 pm 1 Feb", "+300000-01-01T00:00:00Z", "1)2 3", "29 Feb 2024 12:34:56 GMT",
		"2024-02-29T1:00", "2024-02-29T12:34:56+02", "2024-02-29T12:34:56+0200", "2024-02-29T12:34:56 GMT", "2024-2-29T12:34",
		"1970 (x)T", "1970-é",
	} {
		if ms, ok := Parse(in); ok {
			t.Errorf("%q is %s", in, Format(ms, true))
		}
	}
}

func TestFormat(t *testing.T) {
	for days := int64(-800_000); days < 3_000_000; days += 997 {
		ms := days*dayMillis + 45_296_789
		tm := time.UnixMilli(ms).UTC()
		if y := tm.Year(); y < 0 || y > 9999 {
			continue
		}
		if got, want := Format(ms, true), tm.Format("2006-01-02 15:04:05.000"); got != want {
			t.Fatalf("%d is %s, want %s", ms, got, want)
		}
	}
	if ms, ok := FromJulianDay(0); !ok || Format(ms, false) != "-4713-11-24 12:00:00" {
		t.Errorf("Julian day 0 is %s", Format(ms, false))
	}
	if ms, ok := FromJulianDay(20240229); !ok || Format(ms, false) != "+050703-10-07 12:00:00" {
		t.Errorf("Julian day 20240229 is %s", Format(ms, false))
	}
	if _, ok := FromJulianDay(1709210096); ok {
		t.Error("Julian day 1709210096 is in range")
	}
	if got := Seconds(-1); got != -1 {
		t.Errorf("a millisecond before 1970 is second %d", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("2024-02-29T12:34:56.789+02:00")
	f.Add("Thu, 29 Feb 2024 12:34:56 pm EST (x)")
	f.Fuzz(func(t *testing.T, s string) {
		ms, ok := Parse(s)
		if !ok {
			return
		}
		if ms > maxMillis || ms < -maxMillis {
			t.Fatalf("%q is %d", s, ms)
		}
		text := Format(ms, true)
		if year := time.UnixMilli(ms).UTC().Year(); year < 100 || year > 9999 {
			return
		}
		if back, ok := Parse(text); !ok || back != ms {
			t.Fatalf("%q is %s, which is %d, %v, not %d", s, text, back, ok, ms)
		}
	})
}
