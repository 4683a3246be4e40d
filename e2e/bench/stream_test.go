package bench

import (
	"bufio"
	"io"
	"strings"
	"testing"
)

func TestStreamReadsLines(t *testing.T) {
	const ops = 500
	long := `{"data":{"bucket":"b","data":[` + strings.Repeat(`{"op_id":"1","data":"{\"seq\":41}"},`, ops) + `]}}`
	text := `{"checkpoint":{"last_op_id":"9","write_checkpoint":"12","buckets":[` + strings.Repeat(`{"bucket":"x"},`, 300) + "]}}\n" +
		long + "\n" +
		`{"data":{"bucket":"b","data":[{"op_id":"2","data":"{\"seq\":42,\"x\":1}"}]}}` + "\n" +
		`{"checkpoint_complete":{"last_op_id":"9"}}` + "\n" + `{"token_expires_in":9}` + "\n"
	// Every size puts the seams of the pieces elsewhere.
	for size := 64; size < 400; size++ {
		s := &Stream{body: io.NopCloser(nil), reader: bufio.NewReaderSize(strings.NewReader(text), size)}
		if err := s.Complete(); err != nil {
			t.Fatal(err)
		}
		if s.Ops != ops+1 || s.Seq != 42 || s.WriteCheckpoint != 12 || s.LastOpID != "9" {
			t.Fatalf("buffer of %d: %d ops, seq %d, write checkpoint %d, last op id %q", size, s.Ops, s.Seq, s.WriteCheckpoint, s.LastOpID)
		}
		if err := s.Complete(); err == nil {
			t.Fatal("the end of the stream was not reported")
		}
	}
}
