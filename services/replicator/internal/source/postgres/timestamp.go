package postgres

import "time"

// appendTimestamp appends a timestamp in the form that the options ask for; ok
// is false, and the value NULL, if it has no such form (years before 0001 or
// after 9999). With a zone the result is in UTC.
func (c *converter) appendTimestamp(dst, b []byte, zone bool) (_ []byte, ok bool) {
	const plain = len("2024-02-29 12:34:56")
	switch string(b) {
	case "infinity":
		b = []byte("9999-12-31 23:59:59+00")
		if !zone {
			b = b[:plain]
		}
	case "-infinity":
		b = []byte("0000-01-01 00:00:00+00")
		if !zone {
			b = b[:plain]
		}
	}
	if len(b) < plain || b[4] != '-' || b[7] != '-' || b[10] != ' ' || b[13] != ':' || b[16] != ':' {
		return dst, false // another number of digits in the year
	}
	rest := b[plain:]
	fraction := rest[:0]
	if len(rest) > 0 && rest[0] == '.' {
		n := 1
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		fraction, rest = rest[:n], rest[n:]
	}
	whole := b[:plain]
	var moved [plain]byte
	if zone {
		offset, after, ok := parseOffset(rest)
		if !ok {
			return dst, false
		}
		rest = after
		if offset != 0 {
			t := time.Date(number(b[0:4]), time.Month(number(b[5:7])), number(b[8:10]), number(b[11:13]), number(b[14:16]), number(b[17:19])-offset, 0, time.UTC)
			if y := t.Year(); y < 0 || y > 9999 {
				return dst, false
			}
			whole = t.AppendFormat(moved[:0], "2006-01-02 15:04:05")
		}
	}
	if len(rest) > 0 { // " BC"
		return dst, false
	}
	if c.options.ISO8601 {
		dst = append(dst, whole[:10]...)
		dst = append(dst, 'T')
		dst = append(dst, whole[11:]...)
		dst = appendFraction(dst, fraction, c.digits())
	} else {
		dst = append(dst, whole...)
		dst = append(dst, fraction...)
	}
	if zone {
		dst = append(dst, 'Z')
	}
	return dst, true
}

// appendTime appends a time of day.
func (c *converter) appendTime(dst, b []byte) []byte {
	const plain = len("12:34:56")
	if !c.options.ISO8601 || len(b) < plain {
		return append(dst, b...)
	}
	return appendFraction(append(dst, b[:plain]...), b[plain:], c.digits())
}

// appendFraction appends a fraction (with its point, or empty) cut or padded
// to digits.
func appendFraction(dst, fraction []byte, digits int) []byte {
	if digits == 0 {
		return dst
	}
	dst = append(dst, '.')
	if len(fraction) > 0 {
		fraction = fraction[1:]
	}
	for i := range digits {
		if i < len(fraction) {
			dst = append(dst, fraction[i])
		} else {
			dst = append(dst, '0')
		}
	}
	return dst
}

// parseOffset reads +hh[:mm[:ss]] and returns seconds east of UTC.
func parseOffset(b []byte) (seconds int, rest []byte, ok bool) {
	if len(b) < 3 || b[0] != '+' && b[0] != '-' {
		return 0, b, false
	}
	sign := 1
	if b[0] == '-' {
		sign = -1
	}
	seconds = number(b[1:3]) * 3600
	b = b[3:]
	for unit := 60; unit > 0 && len(b) >= 3 && b[0] == ':'; unit /= 60 {
		seconds += number(b[1:3]) * unit
		b = b[3:]
	}
	return sign * seconds, b, true
}

func number(b []byte) int {
	n := 0
	for _, d := range b {
		n = n*10 + int(d-'0')
	}
	return n
}
