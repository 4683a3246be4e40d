// Package date reads and writes times as the reference engine's unixepoch and
// datetime do. Text goes through the parser of its host language, which is
// lenient: first as ISO 8601, and what that does not take as loose words and
// numbers. Text without a time zone is in UTC.
//
// Parse is a function of its text: there is no "now" and no local time.
//
// Invariants:
//
//   - No text makes Parse panic, and its result is in range (FuzzParse).
//   - What Format writes for the years 100 to 9999 reads back (FuzzParse).
package date

import (
	"fmt"
	"math"
	"strings"
)

// maxMillis is the largest time, as in the host language: 8.64e15 ms.
const maxMillis = 8_640_000_000_000_000

const dayMillis = 86_400_000

// FromReal returns the time that is f milliseconds after 1970, without its
// fraction; false if it is out of range.
func FromReal(f float64) (int64, bool) {
	if !(math.Abs(f) <= maxMillis) {
		return 0, false
	}
	return int64(f), true
}

// FromJulianDay returns the time of a Julian day number.
func FromJulianDay(day float64) (int64, bool) {
	return FromReal((day - 2440587.5) * dayMillis)
}

// Parse returns the time that a text means, in milliseconds after 1970.
func Parse(s string) (int64, bool) {
	if !hasZone(s) {
		s += "Z"
	}
	p := parser{s: s, zone: zone{hour: none, minute: none}, day: day{month: none}, time: clock{offset: none}}
	if !p.parse() {
		return 0, false
	}
	year, month, dayOfMonth, ok := p.day.result()
	if !ok {
		return 0, false
	}
	millis, ok := p.time.result()
	if !ok {
		return 0, false
	}
	t := days(year, month, dayOfMonth)*dayMillis + millis - p.zone.millis()
	return t, t >= -maxMillis && t <= maxMillis
}

// hasZone reports whether s ends with Z or an offset such as +02:00.
func hasZone(s string) bool {
	if s == "" {
		return false
	}
	if s[len(s)-1]|0x20 == 'z' {
		return true
	}
	n := len(s) - 6
	return n >= 0 && (s[n] == '+' || s[n] == '-') && isDigit(s[n+1]) && isDigit(s[n+2]) && s[n+3] == ':' && isDigit(s[n+4]) &&
		isDigit(s[n+5])
}

// days counts the days from 1970-01-01 to a date of the Gregorian calendar; a
// day beyond the end of the month counts on.
func days(year, month, day int64) int64 {
	// Years that start in March make the leap day the last.
	if month <= 2 {
		year--
		month += 12
	}
	era := floorDiv(year, 400)
	inEra := year - era*400
	inYear := (153*(month-3) + 2) / 5
	return era*146097 + inEra*365 + inEra/4 - inEra/100 + inYear + day - 1 - 719468
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// Seconds rounds a time down to seconds.
func Seconds(millis int64) int64 { return floorDiv(millis, 1000) }

// Format writes a time as YYYY-MM-DD HH:MM:SS, with .SSS if subsec. Years after
// 9999 have a sign and six digits.
func Format(millis int64, subsec bool) string {
	d := floorDiv(millis, dayMillis)
	inDay := millis - d*dayMillis
	d += 719468
	era := floorDiv(d, 146097)
	inEra := d - era*146097
	yearOfEra := (inEra - inEra/1460 + inEra/36524 - inEra/146096) / 365
	inYear := inEra - (365*yearOfEra + yearOfEra/4 - yearOfEra/100)
	m := (5*inYear + 2) / 153
	day := inYear - (153*m+2)/5 + 1
	month, year := m+3, yearOfEra+era*400
	if month > 12 {
		month -= 12
		year++
	}
	var b strings.Builder
	switch {
	case year > 9999:
		fmt.Fprintf(&b, "+%06d", year)
	case year < -9999:
		fmt.Fprintf(&b, "-%06d", -year)
	case year < 0:
		fmt.Fprintf(&b, "-%04d", -year)
	default:
		fmt.Fprintf(&b, "%04d", year)
	}
	fmt.Fprintf(&b, "-%02d-%02d %02d:%02d:%02d", month, day, inDay/3_600_000, inDay/60_000%60, inDay/1000%60)
	if subsec {
		fmt.Fprintf(&b, ".%03d", inDay%1000)
	}
	return b.String()
}
