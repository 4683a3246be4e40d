package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// Line kinds by how a line begins; a server writes the kind first.
var (
	kindData       = []byte(`{"data":`)
	kindComplete   = []byte(`{"checkpoint_complete":`)
	kindCheckpoint = []byte(`{"checkpoint":`)
	kindDiff       = []byte(`{"checkpoint_diff":`)
	opMark         = []byte(`"op_id":`)
	wcMark         = []byte(`"write_checkpoint":"`)
	clearMark      = []byte(`"op":"CLEAR"`)
	checksumMark   = []byte(`"checksum":`)
	// seqMark begins the number that a scenario writes in a row: the data of an
	// op is JSON inside a JSON string, so its quotes are escaped.
	seqMark = []byte(`\"seq\":`)
)

// Stream is one client's sync stream: it reads lines, counts ops and tells of
// complete checkpoints. It keeps nothing, so thousands fit beside the server.
type Stream struct {
	Ops   int
	Bytes int64
	// Seq is the highest sequence number seen in a row, written by the scenario.
	Seq int64
	// WriteCheckpoint is the newest one announced.
	WriteCheckpoint uint64
	LastOpID        string

	conn   *conn
	stop   func() bool // of what closes conn with the context
	reader *bufio.Reader

	// The one bucket's checksum as announced and as summed up. A CLEAR after
	// the first op ends the checks: then the ops before it would have to be known.
	expected, sum uint32
	unchecked     bool
	tail          []byte // of the piece before, of the same line
}

// Open connects a stream that has nothing yet. buffer is what it reads at once. The
// stream ends with ctx.
func Open(ctx context.Context, url, token, clientID string, buffer int) (*Stream, error) {
	body, err := json.Marshal(map[string]any{
		"buckets": []any{}, "include_checksum": true, "raw_data": true, "client_id": clientID, "parameters": map[string]any{},
	})
	if err != nil {
		return nil, err
	}
	c, err := dial(url)
	if err != nil {
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	s := &Stream{conn: c, stop: context.AfterFunc(ctx, func() { c.Close() })}
	resp, err := c.do(http.MethodPost, "/sync/stream", token, "application/x-ndjson", body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = refusal(resp)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	s.reader = bufio.NewReaderSize(resp.Body, buffer)
	return s, nil
}

// Close ends the stream.
func (s *Stream) Close() {
	s.stop()
	s.conn.Close()
}

// Complete reads until the next checkpoint_complete.
func (s *Stream) Complete() error {
	for {
		complete, err := s.line()
		if err != nil {
			return err
		}
		if complete && !s.unchecked && s.sum != s.expected {
			return fmt.Errorf("checksum %d at op %s, the server says %d", s.sum, s.LastOpID, s.expected)
		}
		if complete {
			return nil
		}
	}
}

// line reads one line, of any length, piece by piece.
func (s *Stream) line() (complete bool, err error) {
	piece, err := s.reader.ReadSlice('\n')
	if err != nil && err != bufio.ErrBufferFull {
		return false, fmt.Errorf("read the stream after %d ops: %w", s.Ops, err)
	}
	s.Bytes += int64(len(piece))
	switch {
	case bytes.HasPrefix(piece, kindComplete):
		complete = true
		s.LastOpID = quoted(piece, []byte(`"last_op_id":"`))
	case bytes.HasPrefix(piece, kindCheckpoint), bytes.HasPrefix(piece, kindDiff):
		s.checksums(piece, true, func(sum uint32) { s.expected = sum })
		if n, err := strconv.ParseUint(quoted(piece, wcMark), 10, 64); err == nil {
			s.WriteCheckpoint = n
		}
	case bytes.HasPrefix(piece, kindData):
		if s.Ops > 0 && bytes.Contains(piece, clearMark) {
			s.unchecked = true
		}
		add := func(sum uint32) { s.sum += sum }
		s.checksums(piece, err == nil, add)
		s.count(piece)
		// A mark that is cut by the end of a piece is found with what follows.
		for err == bufio.ErrBufferFull {
			rest := min(len(piece), 32)
			kept := append([]byte(nil), piece[len(piece)-rest:]...)
			before := bytes.Count(kept, opMark)
			piece, err = s.reader.ReadSlice('\n')
			if err != nil && err != bufio.ErrBufferFull {
				return false, fmt.Errorf("read the stream after %d ops: %w", s.Ops, err)
			}
			s.Bytes += int64(len(piece))
			seam := append(kept, piece[:min(len(piece), 32)]...)
			s.Ops += bytes.Count(seam, opMark) - before - bytes.Count(piece[:min(len(piece), 32)], opMark)
			s.checksums(piece, err == nil, add)
			s.count(piece)
		}
		return false, nil
	}
	for err == bufio.ErrBufferFull { // the rest of a long line of another kind
		piece, err = s.reader.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return false, fmt.Errorf("read the stream after %d ops: %w", s.Ops, err)
		}
		s.Bytes += int64(len(piece))
	}
	return complete, nil
}

// checksums calls do for each checksum in the next piece of a line; last says that
// the line ends with it. One that is cut by the end of a piece is found with
// the next.
func (s *Stream) checksums(piece []byte, last bool, do func(uint32)) {
	const most = 24 // bytes of a mark and its digits
	if len(s.tail) > 0 {
		seam := append(s.tail, piece[:min(len(piece), most)]...)
		scanChecksums(seam, len(s.tail), do)
	}
	from := scanChecksums(piece, len(piece)-most, do)
	s.tail = s.tail[:0]
	if last {
		scanChecksums(piece[from:], len(piece), do)
		return
	}
	s.tail = append(s.tail, piece[from:]...)
}

// scanChecksums calls do for the checksums that begin before end, and returns
// where the rest begins.
func scanChecksums(text []byte, end int, do func(uint32)) (rest int) {
	at := 0
	for {
		i := bytes.Index(text[at:], checksumMark)
		if i < 0 || at+i >= end {
			return max(at, min(len(text), max(end, 0)))
		}
		at += i + len(checksumMark)
		n := uint32(0)
		for ; at < len(text) && text[at] >= '0' && text[at] <= '9'; at++ {
			n = n*10 + uint32(text[at]-'0')
		}
		do(n)
	}
}

func (s *Stream) count(piece []byte) {
	s.Ops += bytes.Count(piece, opMark)
	if i := bytes.LastIndex(piece, seqMark); i >= 0 {
		digits := piece[i+len(seqMark):]
		n := int64(0)
		for _, c := range digits {
			if c < '0' || c > '9' {
				break
			}
			n = n*10 + int64(c-'0')
		}
		s.Seq = max(s.Seq, n)
	}
}

// quoted returns the text between mark, which ends with a quote, and the next quote.
func quoted(line, mark []byte) string {
	i := bytes.Index(line, mark)
	if i < 0 {
		return ""
	}
	rest := line[i+len(mark):]
	end := bytes.IndexByte(rest, '"')
	if end < 0 {
		return ""
	}
	return string(rest[:end])
}
