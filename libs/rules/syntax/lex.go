package syntax

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxLength is the longest SQL text that Parse takes, in bytes.
const MaxLength = 1 << 20

type kind uint8

const (
	end     kind = iota
	word         // unquoted identifier or keyword
	quoted       // "identifier"
	text         // 'literal'
	digits       // 12
	decimal      // 1.5, .5, 1.
	param        // $1
	op           // operator or punctuation
)

type token struct {
	kind  kind
	span  Span
	text  string // as written
	value string // word: lower-cased; quoted, text: the content
}

// operators, longer before their prefixes.
var operators = [...]string{
	"!~*", "->>",
	"->", "::", "||", "&&", "!=", "<>", "<=", ">=", "<@", "@>", "@@", "#-", "?|", "?&", "!~", "~*", "<<", ">>",
	"=", "<", ">", "+", "-", "*", "/", "%", "^", "|", "&", "#", "~", "?", "(", ")", "[", "]", ",", ";", ".", ":",
}

// lex cuts sql into tokens, the last of which is an end; a fault ends it.
func lex(sql string) ([]token, *Error) {
	if len(sql) > MaxLength {
		return nil, &Error{"The query is longer than " + strconv.Itoa(MaxLength) + " bytes", Span{0, len(sql)}}
	}
	tokens := make([]token, 0, len(sql)/4+1)
	for i := 0; ; {
		next, fault := space(sql, i)
		if fault != nil {
			return nil, fault
		}
		i = next
		if i == len(sql) {
			// The end is behind the last token: what is missing there is missed
			// on that line, not on a later one.
			last := Span{}
			if n := len(tokens); n > 0 {
				last.Start, last.End = tokens[n-1].span.End, tokens[n-1].span.End
			}
			return append(tokens, token{kind: end, span: last}), nil
		}
		t, fault := lexOne(sql, i)
		if fault != nil {
			return nil, fault
		}
		t.text = sql[t.span.Start:t.span.End]
		tokens = append(tokens, t)
		i = t.span.End
	}
}

// space skips white space and comments.
func space(sql string, i int) (int, *Error) {
	for i < len(sql) {
		switch c := sql[i]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v':
			i++
		case strings.HasPrefix(sql[i:], "\u00a0"), strings.HasPrefix(sql[i:], "\ufeff"):
			_, n := utf8.DecodeRuneInString(sql[i:])
			i += n
		case strings.HasPrefix(sql[i:], "--"):
			n := strings.IndexByte(sql[i:], '\n')
			if n < 0 {
				return len(sql), nil
			}
			i += n + 1
		case strings.HasPrefix(sql[i:], "/*"):
			start, depth := i, 1
			for i += 2; depth > 0; {
				switch {
				case i >= len(sql):
					return 0, &Error{"Comment without an end", Span{start, len(sql)}}
				case strings.HasPrefix(sql[i:], "*/"):
					depth--
					i += 2
				case strings.HasPrefix(sql[i:], "/*"):
					depth++
					i += 2
				default:
					i++
				}
			}
		default:
			return i, nil
		}
	}
	return i, nil
}

func lexOne(sql string, i int) (token, *Error) {
	c := sql[i]
	at := func(n int) byte {
		if i+n < len(sql) {
			return sql[i+n]
		}
		return 0
	}
	switch {
	case c == '\'':
		value, n, ok := quotedText(sql[i:], '\'')
		if !ok {
			return token{}, &Error{"Text literal without a closing quote", Span{i, len(sql)}}
		}
		return token{kind: text, span: Span{i, i + n}, value: value}, nil
	case c == '"':
		value, n, ok := quotedText(sql[i:], '"')
		if !ok {
			return token{}, &Error{"Identifier without a closing quote", Span{i, len(sql)}}
		}
		if value == "" {
			return token{}, &Error{"Empty identifier", Span{i, i + n}}
		}
		return token{kind: quoted, span: Span{i, i + n}, value: value}, nil
	case (c == 'e' || c == 'E') && at(1) == '\'':
		value, n, ok := escapedText(sql[i+1:])
		if !ok {
			return token{}, &Error{"Text literal without a closing quote", Span{i, len(sql)}}
		}
		return token{kind: text, span: Span{i, i + 1 + n}, value: value}, nil
	case isLetter(c):
		n := 1
		for isLetter(at(n)) || isDigit(at(n)) {
			n++
		}
		return token{kind: word, span: Span{i, i + n}, value: strings.ToLower(sql[i : i+n])}, nil
	case isDigit(c) || c == '.' && isDigit(at(1)):
		k, n := digits, 0
		for isDigit(at(n)) {
			n++
		}
		if at(n) == '.' {
			k = decimal
			n++
			for isDigit(at(n)) {
				n++
			}
		}
		return token{kind: k, span: Span{i, i + n}}, nil
	case c == '$' && isDigit(at(1)):
		n := 2
		for isDigit(at(n)) {
			n++
		}
		return token{kind: param, span: Span{i, i + n}}, nil
	}
	for _, o := range operators {
		if strings.HasPrefix(sql[i:], o) {
			return token{kind: op, span: Span{i, i + len(o)}, value: o}, nil
		}
	}
	r, n := utf8.DecodeRuneInString(sql[i:])
	msg := "Unexpected character " + strconv.QuoteRune(r)
	if r >= utf8.RuneSelf {
		msg += "; quote identifiers with characters other than ASCII letters, digits and _"
	}
	return token{}, &Error{msg, Span{i, i + n}}
}

// quotedText reads s, which starts with the quote q; a doubled quote stands for
// one. n is the length read.
func quotedText(s string, q byte) (value string, n int, ok bool) {
	doubled := false
	for i := 1; i < len(s); i++ {
		if s[i] != q {
			continue
		}
		if i+1 < len(s) && s[i+1] == q {
			doubled = true
			i++
			continue
		}
		value = s[1:i]
		if doubled {
			value = strings.ReplaceAll(value, string([]byte{q, q}), string(q))
		}
		return value, i + 1, true
	}
	return "", 0, false
}

// escapedText reads the part of E'…' after the E.
func escapedText(s string) (value string, n int, ok bool) {
	var b strings.Builder
	number := func(i, base, limit int) (rune, int) {
		j := i
		for j < len(s) && j < i+limit {
			if _, err := strconv.ParseUint(s[j:j+1], base, 8); err != nil {
				break
			}
			j++
		}
		v, err := strconv.ParseUint(s[i:j], base, 32)
		if err != nil || v > math.MaxInt32 {
			return utf8.RuneError, j
		}
		return rune(v), j
	}
	for i := 1; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\'' && i+1 < len(s) && s[i+1] == '\'':
			b.WriteByte(c)
			i++
		case c == '\'':
			return b.String(), i + 1, true
		case c == '\\' && i+1 < len(s):
			i++
			switch c := s[i]; c {
			case 'b':
				b.WriteByte('\b')
			case 'f':
				b.WriteByte('\f')
			case 'n':
				b.WriteByte('\n')
			case 'r':
				b.WriteByte('\r')
			case 't':
				b.WriteByte('\t')
			case 'x', 'u', 'U':
				limit := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
				r, j := number(i+1, 16, limit)
				if j == i+1 { // no digit: the letter itself
					b.WriteByte(c)
					continue
				}
				b.WriteRune(r)
				i = j - 1
			case '0', '1', '2', '3', '4', '5', '6', '7':
				r, j := number(i, 8, 3)
				b.WriteRune(r)
				i = j - 1
			default:
				b.WriteByte(c)
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, false
}

func isLetter(c byte) bool {
	return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// reserved words are neither names nor aliases unless quoted (or after AS or a
// dot).
var reserved = map[string]bool{}

func init() {
	for w := range strings.FieldsSeq(`all analyse analyze and any array as asc asymmetric both case cast check collate
		column constraint create cross current_catalog current_date current_role current_time current_timestamp
		current_user default deferrable desc distinct do else end except false fetch for foreign from full grant group
		having ilike in initially inner intersect into is isnull join lateral leading left like limit localtime
		localtimestamp natural not notnull null offset on only or order outer placing primary references returning right
		select session_user similar some symmetric table tablesample then to trailing true union unique user using
		variadic when where window with`) {
		reserved[w] = true
	}
}
