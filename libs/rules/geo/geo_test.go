package geo

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for in, want := range map[string][2]string{
		"0101000020e6100000000000000000f03f0000000000000040": {`{"type":"Point","coordinates":[1.0,2.0]}`, "POINT(1 2)"},
		"00000000013ff00000000000004000000000000000":         {`{"type":"Point","coordinates":[1.0,2.0]}`, "POINT(1 2)"},
		"01e9030000000000000000f03f00000000000000400000000000000840": {
			`{"type":"Point","coordinates":[1.0,2.0,3.0]}`, "POINT Z (1 2 3)"},
		"0101000040000000000000f03f00000000000000400000000000000840": {
			`{"type":"Point","coordinates":[1.0,2.0]}`, "POINT M (1 2 3)"},
		"01b90b0000000000000000f03f000000000000004000000000000008400000000000001040": {
			`{"type":"Point","coordinates":[1.0,2.0,3.0]}`, "POINT ZM (1 2 3 4)"},
		"010600000001000000010300000001000000020000000000000000000000000000000000000000000000000000000000f03f0000": {},
		"010200000000000000":                         {`{"type":"LineString","coordinates":[]}`, "LINESTRING EMPTY"},
		"010700000000000000":                         {`{"type":"GeometryCollection","geometries":[]}`, "GEOMETRYCOLLECTION EMPTY"},
		"01ef03000000000000":                         {`{"type":"GeometryCollection","geometries":[]}`, "GEOMETRYCOLLECTION Z EMPTY"},
		"0101000000000000000000f87f000000000000f87f": {`{"type":"Point","coordinates":[NaN,NaN]}`, "POINT(NaN NaN)"},
		"0104000000020000000101000000000000000000f03f0000000000000040010100000000000000000008400000000000001040": {
			`{"type":"MultiPoint","coordinates":[[1.0,2.0],[3.0,4.0]]}`, "MULTIPOINT(1 2,3 4)"},
		"0106000000010000000103000000010000000200000000000000000000000000000000000000000000000000f03f000000000000f03f": {
			`{"type":"MultiPolygon","coordinates":[[[[0.0,0.0],[1.0,1.0]]]]}`, "MULTIPOLYGON(((0 0,1 1)))"},
	} {
		b, err := hex.DecodeString(in)
		if err != nil {
			t.Fatal(in, err)
		}
		g, err := Parse(string(b))
		if want[1] == "" {
			if err == nil {
				t.Errorf("%s is %s", in, g.WKT())
			}
			continue
		}
		if err != nil || g.GeoJSON() != want[0] || g.WKT() != want[1] {
			t.Errorf("%s is %s, %s, %v; want %s, %s", in, g.GeoJSON(), g.WKT(), err, want[0], want[1])
		}
	}
	nested := strings.Repeat("\x01\x07\x00\x00\x00\x01\x00\x00\x00", 100) + "\x01\x07\x00\x00\x00\x00\x00\x00\x00"
	for _, in := range []string{"", "\x01", "\x02\x01\x00\x00\x00", "\x01\x08\x00\x00\x00\x00\x00\x00\x00", nested,
		"\x01\x02\x00\x00\x00\xff\xff\xff\xff", "\x01\xa1\x0f\x00\x00", "\x01\x04\x00\x00\x00\x01\x00\x00\x00\x01\x02\x00\x00\x00\x00\x00\x00\x00"} {
		if g, err := Parse(in); err == nil {
			t.Errorf("%x is %s", in, g.WKT())
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\xf0\x3f\x00\x00\x00\x00\x00\x00\x00\x40")
	f.Add("\x00\x00\x00\x00\x07\x00\x00\x00\x01\x01\x07\x00\x00\x00\x00\x00\x00\x00")
	f.Fuzz(func(t *testing.T, s string) {
		g, err := Parse(s)
		if err != nil {
			return
		}
		if len(g.WKT()) > 40*len(s) {
			t.Fatalf("%d bytes make %d", len(s), len(g.WKT()))
		}
		text := g.GeoJSON()
		if !strings.Contains(text, "NaN") && !strings.Contains(text, "Infinity") && !json.Valid([]byte(text)) {
			t.Fatalf("not JSON: %s", text)
		}
	})
}
