package model

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// TestConformance holds the recorded checksums and identities: data of clients
// that move here keeps its checksums.
func TestConformance(t *testing.T) {
	file, err := os.ReadFile("testdata/checksums.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Vectors []struct {
			Name  string
			Kind  string
			Input struct {
				Table, ID, Data, Subkey string
				Checksums               []Checksum
				Columns                 json.RawMessage
			}
			Checksum Checksum
			UUID     string
			BSONHex  string `json:"bson_hex"`
		}
	}
	if err := json.Unmarshal(file, &doc); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, v := range doc.Vectors {
		switch v.Kind {
		case "put":
			if got, _ := PutChecksum(v.Input.Table, v.Input.ID, v.Input.Data, nil); got != v.Checksum {
				t.Errorf("%s: put checksum %d, want %d", v.Name, got, v.Checksum)
			}
		case "remove":
			if got := RemoveChecksum(v.Input.Subkey); got != v.Checksum {
				t.Errorf("%s: remove checksum %d, want %d", v.Name, got, v.Checksum)
			}
		case "sum":
			var got Checksum
			for _, c := range v.Input.Checksums {
				got += c
			}
			if got != v.Checksum {
				t.Errorf("%s: sum %d, want %d", v.Name, got, v.Checksum)
			}
		case "row_identity":
			table, row := identityColumns(t, v.Input.Columns)
			id, ok, bson := RowIdentity(&table, row, nil)
			if ok != (len(row) > 0) || hex.EncodeToString(bson) != v.BSONHex {
				t.Errorf("%s: bson %x, want %s", v.Name, bson, v.BSONHex)
			}
			if got := string(appendUUID(nil, id)); got != v.UUID {
				t.Errorf("%s: row id %s, want %s", v.Name, got, v.UUID)
			}
		case "subkey":
			continue // opaque to clients: informative only
		default:
			t.Fatalf("%s: unknown kind %q", v.Name, v.Kind)
		}
		ran++
	}
	if ran < 20 {
		t.Fatalf("only %d vectors ran", ran)
	}
}

// identityColumns reads {"column": value} in document order.
func identityColumns(t *testing.T, doc json.RawMessage) (SourceTable, []Value) {
	t.Helper()
	var table SourceTable
	var row []Value
	dec := json.NewDecoder(strings.NewReader(string(doc)))
	dec.UseNumber()
	if _, err := dec.Token(); err != nil {
		t.Fatal(err)
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		var raw any
		if err := dec.Decode(&raw); err != nil {
			t.Fatal(err)
		}
		var v Value
		switch x := raw.(type) {
		case nil:
			v = NullValue
		case string:
			v = TextValue(x)
		case json.Number:
			if strings.ContainsAny(x.String(), ".eE") {
				f, err := x.Float64()
				if err != nil {
					t.Fatal(err)
				}
				v = RealValue(f)
			} else {
				i, err := x.Int64()
				if err != nil {
					t.Fatal(err)
				}
				v = IntegerValue(i)
			}
		case map[string]any:
			b, err := hex.DecodeString(x["$blob"].(string))
			if err != nil {
				t.Fatal(err)
			}
			v = BlobValue(string(b))
		default:
			t.Fatalf("column %v: %T", name, raw)
		}
		table.Columns = append(table.Columns, Column{Name: name.(string), Key: true})
		row = append(row, v)
	}
	return table, row
}

func TestCursorOrder(t *testing.T) {
	chain := []Cursor{{}, {Offset: 1}, {Offset: 2}, {Position: "00000000/00000010"}, {Position: "00000000/00000010", Offset: 7}, {Position: "00000001/00000000"}}
	for i, a := range chain {
		for j, b := range chain {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := a.Compare(b); got != want {
				t.Errorf("%v.Compare(%v) = %d, want %d", a, b, got, want)
			}
		}
	}
}

func BenchmarkPutChecksum(b *testing.B) {
	data := strings.Repeat("x", 200)
	var scratch []byte
	b.ReportAllocs()
	for b.Loop() {
		_, scratch = PutChecksum("todos", "a3f0", data, scratch)
	}
}

func BenchmarkRowIdentity(b *testing.B) {
	table := SourceTable{Columns: []Column{{Name: "id", Key: true}, {Name: "name"}}}
	row := []Value{TextValue("0b7e1c7c-7d7a-5d8f-9f4e-0c7b1d2e3f40"), TextValue("x")}
	var scratch []byte
	b.ReportAllocs()
	for b.Loop() {
		_, _, scratch = RowIdentity(&table, row, scratch)
	}
}
