package date

import (
	"strings"
	"unicode/utf8"
)

const none = -1

type kind uint8

const (
	end kind = iota
	number
	symbol // ':', '-', '+', '.', ')'
	word
	blank
	unknown // also what stands in parentheses
)

// token is a piece of the text. value is a number's value (of at most nine
// digits) or a word's, by its type.
type token struct {
	kind   kind
	symbol byte
	length int
	value  int64
	word   wordType
}

type wordType uint8

const (
	otherWord wordType = iota
	monthName
	halfDay
	zoneName
	separator
)

var words = map[string]struct {
	typ   wordType
	value int64
}{
	"jan": {monthName, 1}, "feb": {monthName, 2}, "mar": {monthName, 3}, "apr": {monthName, 4}, "may": {monthName, 5},
	"jun": {monthName, 6}, "jul": {monthName, 7}, "aug": {monthName, 8}, "sep": {monthName, 9}, "oct": {monthName, 10},
	"nov": {monthName, 11}, "dec": {monthName, 12}, "am": {halfDay, 0}, "pm": {halfDay, 12}, "ut": {zoneName, 0},
	"utc": {zoneName, 0}, "z": {zoneName, 0}, "gmt": {zoneName, 0}, "cdt": {zoneName, -5}, "cst": {zoneName, -6},
	"edt": {zoneName, -4}, "est": {zoneName, -5}, "mdt": {zoneName, -6}, "mst": {zoneName, -7}, "pdt": {zoneName, -7},
	"pst": {zoneName, -8}, "t": {separator, 0},
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func (t token) is(c byte) bool { return t.kind == symbol && t.symbol == c }

func (t token) isSign() bool { return t.is('-') || t.is('+') }

// isZ reports whether t is a name of UTC of one letter.
func (t token) isZ() bool { return t.kind == word && t.word == zoneName && t.length == 1 }

func (t token) fixed(digits int) bool { return t.kind == number && t.length == digits }

// parser reads s token by token.
type parser struct {
	s    string
	i    int
	day  day
	time clock
	zone zone
}

func (p *parser) peek() token {
	i := p.i
	t := p.next()
	p.i = i
	return t
}

func (p *parser) next() token {
	start := p.i
	if start == len(p.s) {
		return token{kind: end}
	}
	c := p.s[start]
	switch {
	case isDigit(c):
		return p.number(start)
	case strings.IndexByte(":-+.)", c) >= 0:
		p.i++
		return token{kind: symbol, symbol: c}
	case c == '(':
		p.parentheses()
		return token{kind: unknown}
	}
	if n := p.space(); n > 0 {
		for ; n > 0; n = p.space() {
			p.i += n
		}
		return token{kind: blank}
	}
	if c < 'A' {
		p.i++
		return token{kind: unknown}
	}
	for p.i < len(p.s) && p.s[p.i] >= 'A' && p.space() == 0 {
		p.i++
	}
	text := strings.ToLower(p.s[start:p.i])
	t := token{kind: word, length: len(text)}
	w, ok := words[text[:min(3, len(text))]]
	if ok && (len(text) <= 3 || w.typ == monthName) {
		t.word, t.value = w.typ, w.value
	}
	return t
}

// space returns how long the white space character is at p.i, 0 if there is
// none.
func (p *parser) space() int {
	r, n := utf8.DecodeRuneInString(p.s[p.i:])
	switch {
	case r == ' ', r >= '\t' && r <= '\r', r == 0xa0, r == 0xfeff, r == 0x1680, r >= 0x2000 && r <= 0x200a,
		r == 0x2028, r == 0x2029, r == 0x202f, r == 0x205f, r == 0x3000:
		return n
	}
	return 0
}

// parentheses skips to the one that closes, or to the end.
func (p *parser) parentheses() {
	for depth := 0; p.i < len(p.s); p.i++ {
		switch p.s[p.i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				p.i++
				return
			}
		}
	}
}

// number reads digits; after leading zeros only nine count.
func (p *parser) number(start int) token {
	for p.i < len(p.s) && isDigit(p.s[p.i]) {
		p.i++
	}
	t := token{kind: number, length: p.i - start}
	significant := strings.TrimLeft(p.s[start:p.i], "0")
	for _, c := range []byte(significant[:min(9, len(significant))]) {
		t.value = t.value*10 + int64(c-'0')
	}
	return t
}

func (p *parser) skip(symbol byte) bool {
	if !p.peek().is(symbol) {
		return false
	}
	p.next()
	return true
}

// parse reads all of s. What ISO 8601 does not take the loose rules go on with,
// from where it stopped; but what follows an ISO date and its T must be an ISO
// time.
func (p *parser) parse() bool {
	t, ok := p.iso()
	if !ok {
		return false
	}
	read := len(p.day.parts) > 0
	for ; t.kind != end; t = p.next() {
		switch {
		case t.kind == number:
			read = true
			if !p.looseNumber(t) {
				return false
			}
		case t.kind == word:
			switch {
			case t.word == halfDay && len(p.time.parts) > 0:
				p.time.offset = t.value
			case t.word == monthName:
				p.day.month = t.value
				p.skip('-')
			case t.word == zoneName && read:
				p.zone.set(t.value)
			case read, p.peek().kind == number:
				return false
			}
		case t.isSign() && (p.zone.isUTC() || len(p.time.parts) > 0):
			read = true
			if !p.offset(t) {
				return false
			}
		case (t.isSign() || t.is(')')) && read:
			return false
		}
	}
	return true
}

func (p *parser) looseNumber(t token) bool {
	n := t.value
	switch {
	case p.skip(':'):
		if p.skip(':') {
			if len(p.time.parts) > 0 {
				return false
			}
			return p.time.add(n) && p.time.add(0)
		}
		if !p.time.add(n) {
			return false
		}
		p.skip('.')
		return true
	case p.skip('.') && p.time.expects(n):
		fraction := p.next()
		if fraction.kind != number {
			return false
		}
		p.time.add(n)
		p.time.addLast(millisOf(fraction)) // has no effect after a:b:c:d
		return true
	case p.zone.expects(n):
		p.zone.minute = n
		return true
	case p.time.expects(n):
		if !p.time.addLast(n) {
			return false
		}
		after := p.peek()
		return after.kind == end || after.kind == blank || after.isZ() || after.isSign()
	}
	if !p.day.add(n) {
		return false
	}
	p.skip('-')
	return true
}

// offset reads what follows the sign of a time zone's offset.
func (p *parser) offset(sign token) bool {
	p.zone.negative = sign.is('-')
	p.zone.known = true
	var n int64
	length := 0
	if p.peek().kind == number {
		t := p.next()
		n, length = t.value, t.length
	}
	switch {
	case p.peek().is(':'):
		p.zone.hour, p.zone.minute = n, none
	case length == 1 || length == 2:
		p.zone.hour, p.zone.minute = n, 0
	case length == 3 || length == 4:
		p.zone.hour, p.zone.minute = n/100, n%100
	default:
		return false
	}
	return true
}

// iso reads an ISO 8601 date or date and time; it returns the end, or the token
// with which it cannot go on. ok is false if there is a T, but no time after it.
func (p *parser) iso() (t token, ok bool) {
	switch t := p.peek(); {
	case t.isSign():
		p.next()
		if !p.peek().fixed(6) {
			return t, true
		}
		year := p.next().value
		if t.is('-') {
			if year == 0 {
				return t, true // the year is lost, as it is in the reference
			}
			year = -year
		}
		p.day.add(year)
	case t.fixed(4):
		p.next()
		p.day.add(t.value)
	default:
		return p.next(), true
	}
	if p.skip('-') {
		if m := p.peek(); !m.fixed(2) || !isMonth(m.value) {
			return p.next(), true
		}
		p.day.add(p.next().value)
		if p.skip('-') {
			if d := p.peek(); !d.fixed(2) || !isDay(d.value) {
				return p.next(), true
			}
			p.day.add(p.next().value)
		}
	}
	switch t := p.next(); {
	case t.kind == word && t.word == separator:
		p.day.iso = true
		return token{kind: end}, p.isoTime() && p.peek().kind == end
	case t.kind != end:
		return t, true
	}
	p.day.iso = true
	return token{kind: end}, true
}

// isoTime reads what stands after the T.
func (p *parser) isoTime() bool {
	hour := p.next()
	if !hour.fixed(2) || hour.value > 24 || !p.skip(':') {
		return false
	}
	// Hour 24 takes zeros only.
	sixty := func(t token) bool { return t.fixed(2) && t.value < 60 && (hour.value < 24 || t.value == 0) }
	minute := p.next()
	if !sixty(minute) {
		return false
	}
	p.time.add(hour.value)
	p.time.add(minute.value)
	if p.skip(':') {
		second := p.next()
		if !sixty(second) {
			return false
		}
		p.time.add(second.value)
		if p.skip('.') {
			f := p.next()
			if f.kind != number || hour.value == 24 && f.value > 0 {
				return false
			}
			p.time.add(millisOf(f))
		}
	}
	switch t := p.peek(); {
	case t.isZ():
		p.next()
		p.zone.set(0)
	case t.isSign():
		return p.isoZone()
	}
	return true
}

// isoZone reads +hh:mm or +hhmm.
func (p *parser) isoZone() bool {
	p.zone.known, p.zone.negative = true, p.next().is('-')
	h := p.next()
	if h.fixed(4) {
		p.zone.hour, p.zone.minute = h.value/100, h.value%100
	} else {
		if !h.fixed(2) || !p.skip(':') {
			return false
		}
		m := p.next()
		if !m.fixed(2) {
			return false
		}
		p.zone.hour, p.zone.minute = h.value, m.value
	}
	return p.zone.hour <= 23 && p.zone.minute <= 59
}

// millisOf reads the digits after a point as milliseconds.
func millisOf(t token) int64 {
	n, length := t.value, min(t.length, 9)
	for ; length < 3; length++ {
		n *= 10
	}
	for ; length > 3; length-- {
		n /= 10
	}
	return n
}

func isMonth(n int64) bool { return n >= 1 && n <= 12 }

func isDay(n int64) bool { return n >= 1 && n <= 31 }

// day collects the numbers of a date.
type day struct {
	parts []int64
	month int64 // by name
	iso   bool
}

func (d *day) add(n int64) bool {
	if len(d.parts) == 3 {
		return false
	}
	d.parts = append(d.parts, n)
	return true
}

// result orders the numbers: the year first if the first is no day of a month,
// otherwise month, day, year. Years below 100 are of the last or this century.
func (d *day) result() (year, month, day int64, ok bool) {
	if len(d.parts) == 0 {
		return 0, 0, 0, false
	}
	parts := append(append([]int64(nil), d.parts...), 1, 1)[:3]
	switch {
	case d.month == none && (d.iso || !isDay(parts[0])):
		year, month, day = parts[0], parts[1], parts[2]
	case d.month == none:
		month, day, year = parts[0], parts[1], parts[2]
	case !isDay(parts[0]):
		month, year, day = d.month, parts[0], parts[1]
	default:
		month, day, year = d.month, parts[0], parts[1]
	}
	if !d.iso {
		switch {
		case year >= 0 && year <= 49:
			year += 2000
		case year >= 50 && year <= 99:
			year += 1900
		}
	}
	return year, month, day, isMonth(month) && isDay(day)
}

// clock collects hour, minute, second, millisecond.
type clock struct {
	parts  []int64
	offset int64 // of AM, PM
}

func (c *clock) add(n int64) bool {
	if len(c.parts) == 4 {
		return false
	}
	c.parts = append(c.parts, n)
	return true
}

func (c *clock) addLast(n int64) bool {
	if !c.add(n) {
		return false
	}
	for len(c.parts) < 4 {
		c.parts = append(c.parts, 0)
	}
	return true
}

func (c *clock) expects(n int64) bool {
	switch len(c.parts) {
	case 1, 2:
		return n < 60
	case 3:
		return n < 1000
	}
	return false
}

func (c *clock) result() (millis int64, ok bool) {
	parts := append(append([]int64(nil), c.parts...), 0, 0, 0, 0)[:4]
	hour, minute, second, ms := parts[0], parts[1], parts[2], parts[3]
	if c.offset != none {
		if hour > 12 {
			return 0, false
		}
		hour = hour%12 + c.offset
	}
	if (hour > 23 || minute > 59 || second > 59 || ms > 999) && (hour != 24 || minute != 0 || second != 0 || ms != 0) {
		return 0, false
	}
	return ((hour*60+minute)*60+second)*1000 + ms, true
}

// zone is an offset from UTC.
type zone struct {
	known, negative bool
	hour, minute    int64
}

func (z *zone) set(hours int64) {
	z.known, z.negative = true, hours < 0
	z.hour, z.minute = max(hours, -hours), 0
}

func (z *zone) isUTC() bool { return z.hour == 0 && z.minute == 0 }

func (z *zone) expects(n int64) bool { return z.hour != none && z.minute == none && n < 60 }

func (z *zone) millis() int64 {
	if !z.known {
		return 0
	}
	t := (max(z.hour, 0)*60 + max(z.minute, 0)) * 60_000
	if z.negative {
		return -t
	}
	return t
}
