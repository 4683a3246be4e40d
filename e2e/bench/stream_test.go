package bench

import (
	"bufio"
	"fmt"
	"strings"
	"testing"
)

func TestStreamReadsLines(t *testing.T) {
	const ops = 500
	const sum = uint32(4_000_000_000*ops%(1<<32) + 5)
	long := `{"data":{"bucket":"b","data":[` + strings.Repeat(`{"checksum":4000000000,"op_id":"1","data":"{\"seq\":41,\"checksum\":7}"},`, ops) + `]}}`
	text := `{"checkpoint":{"last_op_id":"9","write_checkpoint":"12","buckets":[{"bucket":"b","checksum":` + fmt.Sprint(sum) + `}]}}` + "\n" +
		long + "\n" +
		`{"data":{"bucket":"b","data":[{"checksum":5,"op_id":"2","data":"{\"seq\":42,\"x\":1}"}]}}` + "\n" +
		`{"checkpoint_complete":{"last_op_id":"9"}}` + "\n" + `{"token_expires_in":9}` + "\n"
	// Every size puts the seams of the pieces elsewhere.
	for size := 110; size < 500; size++ {
		s := &Stream{reader: bufio.NewReaderSize(strings.NewReader(text), size)}
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

func TestStreamChecksChecksums(t *testing.T) {
	text := `{"checkpoint":{"last_op_id":"9","buckets":[{"bucket":"b","checksum":7}]}}
{"data":{"bucket":"b","data":[{"checksum":5,"op_id":"2"}]}}
{"checkpoint_complete":{"last_op_id":"9"}}
`
	s := &Stream{reader: bufio.NewReader(strings.NewReader(text))}
	if err := s.Complete(); err == nil || !strings.Contains(err.Error(), "checksum 5") {
		t.Errorf("error %v", err)
	}
}
