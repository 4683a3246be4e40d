package line

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/rsocket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var state = model.BucketState{Checksum: 4000305306, Count: 3}

var bucket = session.Bucket{ID: `41#my_lists|0["u\"1"]`, Priority: 1, State: state, Reasons: []session.Reason{{Default: true, Index: 2}, {Index: 5}}}

// TestLines holds each line to the captured sessions' form (spec/07), as NDJSON
// and as BSON alike.
func TestLines(t *testing.T) {
	const b = `{"bucket":"41#my_lists|0[\"u\\\"1\"]","checksum":4000305306,"count":3,"priority":1,"subscriptions":[{"default":2},{"sub":5}]}`
	for _, x := range []struct {
		line session.Line
		want string
	}{
		{session.Checkpoint{LastOp: 2123177, WriteCheckpoint: 7, Buckets: []session.Bucket{bucket, bucket}, Streams: []session.Stream{
			{Name: "my_types", IsDefault: true},
			{Name: "t", Errors: []session.StreamError{{Default: true, Message: "x\n"}, {Subscription: 1, Message: "y"}}},
		}}, `{"checkpoint":{"last_op_id":"2123177","write_checkpoint":"7","buckets":[` + b + `,` + b + `],"streams":[{"name":"my_types","is_default":true,"errors":[]},{"name":"t","is_default":false,"errors":[{"subscription":"default","message":"x\n"},{"subscription":1,"message":"y"}]}]}}`},
		{session.Checkpoint{LastOp: 0}, `{"checkpoint":{"last_op_id":"0","buckets":[],"streams":[]}}`},
		{session.CheckpointDiff{LastOp: 1<<63 - 1, Removed: []string{"a", `b"`}, Updated: []session.Bucket{bucket}}, `{"checkpoint_diff":{"last_op_id":"9223372036854775807","removed_buckets":["a","b\""],"updated_buckets":[` + b + `]}}`},
		{session.CheckpointDiff{LastOp: 5, WriteCheckpoint: 1}, `{"checkpoint_diff":{"last_op_id":"5","write_checkpoint":"1","removed_buckets":[],"updated_buckets":[]}}`},
		{session.PartialComplete{LastOp: 5, Priority: 0}, `{"partial_checkpoint_complete":{"last_op_id":"5","priority":0}}`},
		{session.Complete{LastOp: 5}, `{"checkpoint_complete":{"last_op_id":"5"}}`},
		{session.TokenExpiresIn{Seconds: 3540}, `{"token_expires_in":3540}`},
	} {
		if got := string(Append(nil, NDJSON, x.line)); got != x.want+"\n" {
			t.Errorf("got  %swant %s", got, x.want)
		}
		got, err := rsocket.JSON(Append([]byte{}, BSON, x.line))
		if err != nil {
			t.Errorf("%T: %v", x.line, err)
		}
		if !sameJSON(got, []byte(x.want)) {
			t.Errorf("BSON: got %s\nwant %s", got, x.want)
		}
	}
}

// sameJSON compares values; BSON has checksums above int32 as doubles.
func sameJSON(a, b []byte) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	return fmt.Sprint(x) == fmt.Sprint(y)
}

func ops(list ...model.Op) []byte {
	var b []byte
	for i := range list {
		b = wire.AppendOp(b, &list[i])
	}
	return b
}

var key = model.RowKey{Table: model.TableID{0x5e, 0x8b, 0x2e, 0x84}, Row: model.RowID{0xea}}

func TestChunk(t *testing.T) {
	const row = `{"id":"l1","big":12345678901234567890,"real":1.0,"text":"a\"\\b\nü"}`
	block := ops(
		model.Op{ID: 121, Kind: model.OpPut, Checksum: 3016912, Key: key, ObjectType: "lists", ObjectID: `l"1`, Data: row},
		model.Op{ID: 122, Kind: model.OpMove, Checksum: 88, Target: 500},
		model.Op{ID: 123, Kind: model.OpRemove, Checksum: 4294967295, Key: key, ObjectType: "lists", ObjectID: "l2"},
		model.Op{ID: 124, Kind: model.OpClear, Checksum: 1},
	)
	d := session.Data{Bucket: `1#lists|0["u1"]`, After: 120, NextAfter: 124, HasMore: true, Count: 4}
	const subkey = `"subkey":"5e8b2e84-0000-0000-0000-000000000000/ea000000-0000-0000-0000-000000000000"`
	text, err := json.Marshal(row)
	if err != nil {
		t.Fatal(err)
	}
	format := `{"data":{"bucket":"1#lists|0[\"u1\"]","after":"120","has_more":true,"data":[` +
		`{"op_id":"121","op":"PUT","object_type":"lists","object_id":"l\"1","checksum":3016912,` + subkey + `,"data":%s},` +
		`{"op_id":"122","op":"MOVE","checksum":88%s},` +
		`{"op_id":"123","op":"REMOVE","object_type":"lists","object_id":"l2","checksum":4294967295,` + subkey + `,"data":null},` +
		`{"op_id":"124","op":"CLEAR","checksum":1%s}],"next_after":"124"}}`
	for form, want := range map[Form]string{
		NDJSON: fmt.Sprintf(format, text, "", ""),
		Legacy: fmt.Sprintf(format, row, `,"data":null`, `,"data":null`),
	} {
		got, counts, err := AppendChunk(nil, form, d, block)
		if err != nil || string(got) != want+"\n" {
			t.Errorf("%v\ngot  %s\nwant %s", err, got, want)
		}
		if counts.Put != 1 || counts.Remove != 1 || counts.Move != 1 || counts.Clear != 1 || counts.Ops() != 4 || counts.RowBytes != len(row) {
			t.Errorf("%+v", counts)
		}
	}
	got, _, err := AppendChunk(nil, BSON, d, block)
	if err != nil {
		t.Fatal(err)
	}
	if n := binary.LittleEndian.Uint32(got); int(n) != len(got) {
		t.Errorf("length %d of %d", n, len(got))
	}
	asJSON, err := rsocket.JSON(got)
	if err != nil || !sameJSON(asJSON, []byte(fmt.Sprintf(format, text, "", ""))) {
		t.Errorf("%v %s", err, asJSON)
	}
	if _, _, err := AppendChunk(nil, NDJSON, d, block[:len(block)-1]); err == nil {
		t.Error("a cut block is no error")
	}
}

func TestContentTypes(t *testing.T) {
	for f, want := range map[Form]string{NDJSON: "application/x-ndjson", Legacy: "application/x-ndjson", BSON: "application/vnd.powersync.bson-stream"} {
		if got := f.ContentType(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// FuzzChunk: whatever strings a chunk carries, its line is one JSON object that
// gives them back.
func FuzzChunk(f *testing.F) {
	f.Add("b", "t", "id", `{"id":"x"}`)
	f.Add(`1#"\`, "\x00\x1f", "\u2028", "\\\"\n\r\t\b")
	f.Add(strings.Repeat("a", 7)+`"`, strings.Repeat("b", 8)+"\x01", "ü💥", strings.Repeat("c", 15)+`\`)
	f.Fuzz(func(t *testing.T, name, typ, id, data string) {
		for _, s := range []string{name, typ, id, data} {
			if !utf8.ValidString(s) {
				t.Skip("the encoder is given UTF-8")
			}
		}
		block := ops(model.Op{ID: 1, Kind: model.OpPut, Key: key, ObjectType: typ, ObjectID: id, Data: data})
		d := session.Data{Bucket: name, NextAfter: 1, Count: 1}
		got, _, err := AppendChunk(nil, NDJSON, d, block)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Count(got, []byte("\n")) != 1 {
			t.Fatalf("more than one line: %q", got)
		}
		var l struct {
			Data struct {
				Bucket string
				Data   []struct {
					ObjectType string `json:"object_type"`
					ObjectID   string `json:"object_id"`
					Data       string
				}
			}
		}
		if err := json.Unmarshal(got, &l); err != nil {
			t.Fatalf("%v: %q", err, got)
		}
		op := l.Data.Data[0]
		if l.Data.Bucket != name || op.ObjectType != typ || op.ObjectID != id || op.Data != data {
			t.Fatalf("%q", got)
		}
		if b, _, err := AppendChunk(nil, BSON, d, block); err != nil {
			t.Fatal(err)
		} else if _, err := rsocket.JSON(b); err != nil {
			t.Fatalf("BSON: %v", err)
		}
	})
}

func BenchmarkChunk(b *testing.B) {
	var block []byte
	const n = 1000
	for i := range n {
		block = wire.AppendOp(block, &model.Op{ID: model.OpID(i + 1), Kind: model.OpPut, Checksum: 4e9, Key: key, ObjectType: "todos", ObjectID: fmt.Sprintf("3f8a0b52-%04d", i),
			Data: fmt.Sprintf(`{"id":"3f8a0b52-%04d","list_id":"9b1deb4d","title":"a title of some length, number %d","done":0,"created_at":"2026-11-22 03:04:05Z","note":"%s"}`, i, i, strings.Repeat("n", 60))})
	}
	d := session.Data{Bucket: `1#todos|0["9b1deb4d"]`, NextAfter: n, Count: n}
	for name, form := range map[string]Form{"ndjson": NDJSON, "legacy": Legacy, "bson": BSON} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var dst []byte
			for b.Loop() {
				var err error
				if dst, _, err = AppendChunk(dst[:0], form, d, block); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(dst)))
			b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "ops/s")
		})
	}
}
