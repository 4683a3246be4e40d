package bench

import (
	"bufio"
	"bytes"
	"strconv"
)

// Line kinds by how a line begins; a server writes the kind first.
var (
	kindData       = []byte(`{"data":`)
	kindComplete   = []byte(`{"checkpoint_complete":`)
	kindCheckpoint = []byte(`{"checkpoint":`)
	kindDiff       = []byte(`{"checkpoint_diff":`)
	wcMark         = []byte(`"write_checkpoint":"`)
	checksumMark   = []byte(`"checksum":`)
	clearMark      = []byte(`"CLEAR",`) // before the checksum; shorter than its mark
	bucketMark     = []byte(`"bucket":"`)
	lastMark       = []byte(`"last_op_id":"`)
	// seqMark begins the number that a scenario writes in a row: the data of an
	// op is JSON inside a JSON string, so its quotes are escaped.
	seqMark = []byte(`\"seq\":`)
)

// ndjsonStream finds in NDJSON lines what is needed of them, without parsing.
type ndjsonStream struct {
	reader *bufio.Reader
	end    func()
	tail   []byte // of the piece before, of the same line
}

func (n *ndjsonStream) close() { n.end() }

// next reads one line, of any length, piece by piece.
func (n *ndjsonStream) next(s *Stream) (complete bool, err error) {
	var found func(sum uint32, clear bool)
	for first := true; first || err == bufio.ErrBufferFull; first = false {
		var piece []byte
		piece, err = n.reader.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return false, err
		}
		s.Bytes += int64(len(piece))
		switch {
		case !first:
		case bytes.HasPrefix(piece, kindData):
			found = s.op
		case bytes.HasPrefix(piece, kindComplete):
			complete = true
			s.LastOpID = quoted(piece, lastMark)
		case bytes.HasPrefix(piece, kindCheckpoint), bytes.HasPrefix(piece, kindDiff):
			found = func(sum uint32, _ bool) { s.expected = sum }
			if s.bucket == "" {
				s.bucket = quoted(piece, bucketMark)
			}
			if n, err := strconv.ParseUint(quoted(piece, wcMark), 10, 64); err == nil {
				s.WriteCheckpoint = n
			}
		}
		if found != nil {
			n.checksums(piece, err == nil, found)
			s.sequence(piece, seqMark)
		}
	}
	return complete, nil
}

// op notes one op of a data line: each has one checksum, after what it does.
func (s *Stream) op(sum uint32, clear bool) {
	if clear && s.Ops > 0 {
		s.unchecked = true
	}
	s.sum += sum
	s.Ops++
}

// checksums calls do for each checksum in the next piece of a line; last says that
// the line ends with it. One that is cut by the end of a piece, or parted from
// what is before it, is found with the next.
func (n *ndjsonStream) checksums(piece []byte, last bool, do func(sum uint32, clear bool)) {
	const most = 24 // bytes of a mark and its digits
	before, begin := len(clearMark), 0
	if len(n.tail) > 0 {
		seam := append(n.tail, piece[:min(len(piece), before+most)]...)
		begin = scanChecksums(seam, before, len(n.tail)+before, do) - len(n.tail)
	}
	end := len(piece) - most
	if last {
		end = len(piece)
	}
	rest := scanChecksums(piece, min(begin, len(piece)), end, do)
	n.tail = n.tail[:0]
	if !last {
		n.tail = append(n.tail, piece[rest-before:]...)
	}
}

// scanChecksums calls do for the checksums that begin in [at, end) of text, and
// returns where to go on.
func scanChecksums(text []byte, at, end int, do func(sum uint32, clear bool)) int {
	for at < end {
		i := bytes.Index(text[at:], checksumMark)
		if i < 0 || at+i >= end {
			break
		}
		clear := bytes.HasSuffix(text[:at+i], clearMark)
		at += i + len(checksumMark)
		n := uint32(0)
		for ; at < len(text) && text[at] >= '0' && text[at] <= '9'; at++ {
			n = n*10 + uint32(text[at]-'0')
		}
		do(n, clear)
	}
	return max(at, end)
}

// sequence looks for the last sequence number in text, which mark precedes.
func (s *Stream) sequence(text, mark []byte) {
	i := bytes.LastIndex(text, mark)
	if i < 0 {
		return
	}
	n := int64(0)
	for _, c := range text[i+len(mark):] {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int64(c-'0')
	}
	s.Seq = max(s.Seq, n)
}

// quoted returns the text between mark, which ends with a quote, and the next
// quote that is not escaped; escapes stay.
func quoted(line, mark []byte) string {
	i := bytes.Index(line, mark)
	if i < 0 {
		return ""
	}
	rest := line[i+len(mark):]
	for end := 0; end < len(rest); end++ {
		switch rest[end] {
		case '\\':
			end++
		case '"':
			return string(rest[:end])
		}
	}
	return ""
}
