package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/value"
)

var errEntry = errors.New("parameter index: an entry is not an array of flat objects")

// entryDecoder reads the values of index entries: JSON arrays of flat objects,
// as indexQuery.evaluate writes them. Rows are cut from shared memory.
type entryDecoder struct {
	names []string // outputs, in order
	rows  [][]model.Value
	slab  []model.Value
	text  string
	pos   int
}

// decode appends the rows of one entry.
func (d *entryDecoder) decode(text string) error {
	d.text, d.pos = text, 0
	if !d.take('[') {
		return errEntry
	}
	for first := true; !d.take(']'); first = false {
		if !first && !d.take(',') {
			return errEntry
		}
		if err := d.object(); err != nil {
			return err
		}
	}
	return nil
}

func (d *entryDecoder) take(c byte) bool {
	for d.pos < len(d.text) && d.text[d.pos] == ' ' {
		d.pos++
	}
	if d.pos < len(d.text) && d.text[d.pos] == c {
		d.pos++
		return true
	}
	return false
}

func (d *entryDecoder) object() error {
	n := len(d.names)
	if len(d.slab) < n {
		d.slab = make([]model.Value, max(n, 256))
	}
	row := d.slab[:n:n]
	d.slab = d.slab[n:]
	if !d.take('{') {
		return errEntry
	}
	for first := true; !d.take('}'); first = false {
		if !first && !d.take(',') {
			return errEntry
		}
		key, err := d.string()
		if err != nil || !d.take(':') {
			return errEntry
		}
		v, err := d.value()
		if err != nil {
			return err
		}
		for i, name := range d.names {
			if name == key {
				row[i] = v
			}
		}
	}
	d.rows = append(d.rows, row)
	return nil
}

func (d *entryDecoder) string() (string, error) {
	if !d.take('"') {
		return "", errEntry
	}
	start, escaped := d.pos, false
	for ; d.pos < len(d.text); d.pos++ {
		switch d.text[d.pos] {
		case '\\':
			escaped = true
			d.pos++
		case '"':
			s := d.text[start:d.pos]
			d.pos++
			if escaped {
				return unescape(s)
			}
			return s, nil
		}
	}
	return "", errEntry
}

// unescape decodes the escapes of a JSON string, lone surrogates to WTF-8.
func unescape(s string) (string, error) {
	var b []byte
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			b = append(b, s[i])
			i++
			continue
		}
		if i+1 >= len(s) {
			return "", errEntry
		}
		if s[i+1] == 'u' && i+6 <= len(s) {
			u, err := strconv.ParseUint(s[i+2:i+6], 16, 16)
			if err != nil {
				return "", errEntry
			}
			if u >= 0xd800 && u < 0xe000 {
				b = value.AppendUnit(b, uint16(u))
			} else {
				b = append(b, string(rune(u))...)
			}
			i += 6
			continue
		}
		c := strings.IndexByte(`"\/bfnrt`, s[i+1])
		if c < 0 {
			return "", errEntry
		}
		b = append(b, "\"\\/\b\f\n\r\t"[c])
		i += 2
	}
	return string(b), nil
}

func (d *entryDecoder) value() (model.Value, error) {
	if d.pos < len(d.text) && d.text[d.pos] == '"' {
		s, err := d.string()
		return model.TextValue(s), err
	}
	start := d.pos
	for d.pos < len(d.text) && d.text[d.pos] != ',' && d.text[d.pos] != '}' {
		d.pos++
	}
	s := strings.TrimRight(d.text[start:d.pos], " ")
	switch {
	case s == "null":
		return model.NullValue, nil
	case strings.ContainsAny(s, ".eE"):
		f, err := strconv.ParseFloat(s, 64)
		if err != nil && !math.IsInf(f, 0) || !json.Valid([]byte(s)) {
			return model.Value{}, fmt.Errorf("%w: %w", errEntry, err)
		}
		return model.RealValue(f), nil
	}
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		return model.IntegerValue(i), nil
	}
	if strings.Trim(s, "-0123456789") != "" || s == "" {
		return model.Value{}, errEntry
	}
	return value.Integer(s), nil
}
