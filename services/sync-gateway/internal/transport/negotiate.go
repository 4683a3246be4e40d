package transport

import (
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/services/sync-gateway/internal/coding"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/line"
)

// preference is one element of an Accept or Accept-Encoding header.
type preference struct {
	value string
	q     float64
}

func preferences(header []string) []preference {
	var out []preference
	for _, h := range header {
		for part := range strings.SplitSeq(h, ",") {
			value, rest, _ := strings.Cut(part, ";")
			p := preference{strings.ToLower(strings.TrimSpace(value)), 1}
			for param := range strings.SplitSeq(rest, ";") {
				name, v, _ := strings.Cut(param, "=")
				if strings.EqualFold(strings.TrimSpace(name), "q") {
					q, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
					if err != nil || q < 0 || q > 1 {
						q = 0
					}
					p.q = q
				}
			}
			if p.value != "" {
				out = append(out, p)
			}
		}
	}
	return out
}

// negotiateForm chooses how lines are written. BSON must be asked for by name
// and preferred: clients that send */* know NDJSON only (spec/07).
func negotiateForm(accept []string, rawData bool) line.Form {
	ndjson := line.Legacy
	if rawData {
		ndjson = line.NDJSON
	}
	var bson, text, any float64
	bsonAt, textAt := -1, -1
	for i, p := range preferences(accept) {
		switch p.value {
		case "application/vnd.powersync.bson-stream":
			bson, bsonAt = p.q, i
		case "application/x-ndjson":
			text, textAt = p.q, i
		case "*/*", "application/*":
			any = max(any, p.q)
		}
	}
	if textAt < 0 {
		text = any
	}
	switch {
	case bsonAt < 0 || bson == 0 || bson < text:
		return ndjson
	case bson > text:
		return line.BSON
	case textAt >= 0 && bsonAt < textAt: // equal: the first
		return line.BSON
	}
	return ndjson
}

// negotiateCoding chooses the compression: zstd before gzip before none, if
// the client likes them equally.
func negotiateCoding(accept []string) coding.Coding {
	var zstd, gzip, any float64 = -1, -1, -1
	identity := -1.0
	for _, p := range preferences(accept) {
		switch p.value {
		case "zstd":
			zstd = p.q
		case "gzip", "x-gzip":
			gzip = p.q
		case "identity":
			identity = p.q
		case "*":
			any = p.q
		}
	}
	if any >= 0 {
		if zstd < 0 {
			zstd = any
		}
		if gzip < 0 {
			gzip = any
		}
	}
	best := max(zstd, gzip)
	switch {
	case best <= 0 || identity > best:
		return coding.Identity
	case zstd == best:
		return coding.Zstd
	}
	return coding.Gzip
}
