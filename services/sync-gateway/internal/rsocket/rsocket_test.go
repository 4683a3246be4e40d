package rsocket

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	for name, b := range map[string][]byte{
		"next":      append(AppendNext(nil, 7), "data"...),
		"complete":  AppendComplete(nil, 7),
		"keepalive": AppendKeepalive(nil, []byte("data")),
		"error":     AppendError(nil, 7, ApplicationError, "[PSYNC_S2001] x"),
	} {
		f, err := Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		switch name {
		case "next":
			if f.Stream != 7 || f.Type != Payload || f.Flags != FlagNext || string(f.Data) != "data" || f.HasMetadata {
				t.Errorf("%+v", f)
			}
		case "complete":
			if f.Stream != 7 || f.Type != Payload || f.Flags != FlagComplete || len(f.Data) != 0 {
				t.Errorf("%+v", f)
			}
		case "keepalive":
			if f.Stream != 0 || f.Type != Keepalive || f.Flags != 0 || string(f.Data) != "data" {
				t.Errorf("%+v", f)
			}
		case "error":
			if f.Stream != 7 || f.Code != ApplicationError || string(f.Data) != "[PSYNC_S2001] x" {
				t.Errorf("%+v", f)
			}
		}
	}
}

func TestMalformed(t *testing.T) {
	whole := []byte{0, 0, 0, 0, 0x05, 0x00, 0, 1, 0, 0, 0, 0, 0x4e, 0x20, 0, 1, 0x5f, 0x90, 4, 'j', 's', 'o', 'n', 4, 'j', 's', 'o', 'n', 0, 0, 2, '{', '}', 'd'}
	f, err := Decode(whole)
	if err != nil || f.Type != Setup || f.KeepaliveMS != 20000 || f.LifetimeMS != 90000 || f.MetadataMIME != "json" || f.DataMIME != "json" || string(f.Metadata) != "{}" || string(f.Data) != "d" {
		t.Fatalf("%+v %v", f, err)
	}
	for n := range len(whole) - 1 {
		if _, err := Decode(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes are no error", n, len(whole))
		}
	}
	if _, err := Decode([]byte{0x80, 0, 0, 0, 0, 0}); err == nil {
		t.Error("the highest bit of the stream id is no error")
	}
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0x05, 0x00, 0, 1, 0, 0})
	f.Add(AppendError(nil, 1, 2, "x"))
	f.Add([]byte{0, 0, 0, 1, 0x19, 0x00, 0, 0, 0, 10, 0, 0, 2, '{', '}', '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := Decode(b)
		if err == nil && len(fr.Data)+len(fr.Metadata) > len(b) {
			t.Fatal("more than was given")
		}
	})
}

func TestJSON(t *testing.T) {
	doc := []byte("\x00\x00\x00\x00" +
		"\x02s\x00\x03\x00\x00\x00a\"\x00" +
		"\x10i\x00\xff\xff\xff\xff" +
		"\x12l\x00\xff\xff\xff\xff\xff\xff\xff\x7f" +
		"\x08b\x00\x01" + "\x0an\x00" + "\x06u\x00" +
		"\x01d\x00\x00\x00\x00\x00\x00\x00\xf8\x3f" +
		"\x04a\x00\x0c\x00\x00\x00\x100\x00\x05\x00\x00\x00\x00" +
		"\x03o\x00\x05\x00\x00\x00\x00" + "\x00")
	doc[0] = byte(len(doc))
	got, err := JSON(doc)
	if want := `{"s":"a\"","i":-1,"l":9223372036854775807,"b":true,"n":null,"d":1.5,"a":[5],"o":{}}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
	deep := func(n int) []byte {
		b := []byte{5, 0, 0, 0, 0}
		for range n {
			inner := append([]byte{3, 'a', 0}, b...)
			b = append([]byte{byte(len(inner) + 5), byte((len(inner) + 5) >> 8), 0, 0}, append(inner, 0)...)
		}
		return b
	}
	if _, err := JSON(deep(50)); err != nil {
		t.Error(err)
	}
	nan := append([]byte{16, 0, 0, 0, 1, 'd', 0}, make([]byte, 9)...)
	nan[13], nan[14] = 0xf8, 0x7f
	for name, b := range map[string][]byte{
		"empty": nil, "short": {4, 0, 0, 0}, "length beyond": {9, 0, 0, 0, 0}, "length short": {5, 0, 0, 0, 0, 0}, "no end": {5, 0, 0, 0, 1},
		"name without end": {7, 0, 0, 0, 2, 'a', 0}, "string too long": {14, 0, 0, 0, 2, 'a', 0, 9, 0, 0, 0, 'x', 0, 0}, "string without end": {14, 0, 0, 0, 2, 'a', 0, 2, 0, 0, 0, 'x', 'y', 0},
		"string not UTF-8": {14, 0, 0, 0, 2, 'a', 0, 2, 0, 0, 0, 0xff, 0, 0}, "binary": {8, 0, 0, 0, 5, 'a', 0, 0}, "nested": deep(200), "NaN": nan, "negative": {0xff, 0xff, 0xff, 0xff, 0},
	} {
		if got, err := JSON(b); err == nil {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func FuzzJSON(f *testing.F) {
	f.Add([]byte{5, 0, 0, 0, 0})
	f.Add([]byte("\x0c\x00\x00\x00\x10a\x00\x05\x00\x00\x00\x00"))
	f.Add([]byte("\x0f\x00\x00\x00\x02s\x00\x03\x00\x00\x00a\"\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := JSON(b)
		if err != nil {
			return
		}
		if !json.Valid(got) {
			t.Fatalf("%q", got)
		}
		if strings.Count(string(got), "{") > len(b) {
			t.Fatal("grew")
		}
	})
}
