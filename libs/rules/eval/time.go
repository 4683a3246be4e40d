package eval

import (
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/date"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// instant reads the arguments of unixepoch and datetime: a time and modifiers.
// A number is a Julian day, or seconds after 1970 if the first modifier is
// 'unixepoch'; text is a date, or a Julian day if it is a number. A NULL
// modifier is ignored, and so are all after the second; an unknown one makes
// the result NULL (ok is false).
func instant(args []model.Value) (millis int64, subsec, ok bool) {
	if len(args) == 0 || args[0].IsNull() {
		return 0, false, false
	}
	unix := false
	for i, m := range args[1:min(len(args), 3)] {
		if m.IsNull() {
			continue
		}
		switch strings.ToLower(value.Text(m)) {
		case "unixepoch":
			unix = unix || i == 0
		case "subsec", "subsecond":
			subsec = true
		default:
			return 0, false, false
		}
	}
	switch v := args[0]; v.Kind() {
	case model.Text:
		if day, isNumber := julianDay(v.Str()); isNumber {
			millis, ok = date.FromJulianDay(day)
		} else {
			millis, ok = date.Parse(v.Str())
		}
	case model.Integer, model.BigInteger, model.Real:
		if f := value.CastReal(v).Float(); unix {
			millis, ok = date.FromReal(f * 1000)
		} else {
			millis, ok = date.FromJulianDay(f)
		}
	}
	return millis, subsec, ok
}

// julianDay reads text that is nothing but a decimal number.
func julianDay(s string) (float64, bool) {
	digits := strings.TrimLeft(s, "+-")
	if len(s)-len(digits) > 1 || strings.Trim(digits, "0123456789.") != "" {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil
}

func unixEpoch(args []model.Value) (model.Value, error) {
	millis, subsec, ok := instant(args)
	switch {
	case !ok:
		return model.NullValue, nil
	case subsec:
		return model.RealValue(float64(millis) / 1000), nil
	}
	return model.IntegerValue(date.Seconds(millis)), nil
}

func dateTime(args []model.Value) (model.Value, error) {
	millis, subsec, ok := instant(args)
	if !ok {
		return model.NullValue, nil
	}
	return model.TextValue(date.Format(millis, subsec)), nil
}
