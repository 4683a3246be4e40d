package websocket

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// fixed is a connection that reads what it was given and keeps what it is sent.
type fixed struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (f *fixed) Read(b []byte) (int, error)       { return f.in.Read(b) }
func (f *fixed) Write(b []byte) (int, error)      { return f.out.Write(b) }
func (f *fixed) SetWriteDeadline(time.Time) error { return nil }

func conn(in []byte, deflate bool) (*Conn, *fixed) {
	f := &fixed{in: bytes.NewReader(in)}
	return &Conn{Conn: f, Deflate: deflate, r: bufio.NewReaderSize(f, readBuffer)}, f
}

// masked makes a client's frame.
func masked(first byte, payload []byte) []byte {
	b := AppendHeader(nil, 0, false, len(payload))
	b[0] = first
	b[1] |= 0x80
	mask := []byte{1, 2, 3, 4}
	b = append(b, mask...)
	for i, c := range payload {
		b = append(b, c^mask[i&3])
	}
	return b
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func deflated(s string) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, 9)
	_, _ = w.Write([]byte(s))
	_ = w.Flush()
	return b.Bytes()[:b.Len()-4]
}

func TestRead(t *testing.T) {
	big := strings.Repeat("x", 100_000)
	for name, x := range map[string]struct {
		in   []byte
		want string
		out  string
	}{
		"one":        {masked(0x82, []byte("hello")), "hello", ""},
		"empty":      {masked(0x82, nil), "", ""},
		"126":        {masked(0x82, []byte(big[:300])), big[:300], ""},
		"64 bit":     {masked(0x82, []byte(big)), big, ""},
		"fragments":  {join(masked(0x02, []byte("he")), masked(0x89, []byte("p")), masked(0x00, []byte("l")), masked(0x8a, nil), masked(0x80, []byte("lo"))), "hello", "\x8a\x01p"},
		"deflated":   {masked(0xc2, deflated(big)), big, ""},
		"both":       {join(masked(0x42, deflated("hello")[:3]), masked(0x80, deflated("hello")[3:])), "hello", ""},
		"ping first": {join(masked(0x89, nil), masked(0x82, []byte("a"))), "a", "\x8a\x00"},
	} {
		c, f := conn(x.in, true)
		got, err := c.Read(1 << 20)
		if err != nil || string(got) != x.want || f.out.String() != x.out {
			t.Errorf("%s: %d bytes, %v, answered %q", name, len(got), err, f.out.String())
		}
	}
}

func TestHostileFrames(t *testing.T) {
	for name, x := range map[string]struct {
		in   []byte
		code int
	}{
		"not masked":           {AppendHeader(nil, Binary, false, 0), ProtocolError},
		"reserved bit 1":       {masked(0xa2, nil), ProtocolError},
		"reserved bit 2":       {masked(0x92, nil), ProtocolError},
		"deflate not agreed":   {masked(0xc2, nil), ProtocolError},
		"deflated control":     {masked(0xc9, nil), ProtocolError},
		"opcode 3":             {masked(0x83, nil), ProtocolError},
		"opcode 11":            {masked(0x8b, nil), ProtocolError},
		"opcode 15":            {masked(0x8f, nil), ProtocolError},
		"long ping":            {masked(0x89, make([]byte, 126)), ProtocolError},
		"fragmented ping":      {masked(0x09, nil), ProtocolError},
		"continuation of none": {masked(0x80, nil), ProtocolError},
		"message within":       {join(masked(0x02, nil), masked(0x82, nil)), ProtocolError},
		"text":                 {masked(0x81, []byte("x")), Unsupported},
		"close of one byte":    {masked(0x88, []byte("x")), ProtocolError},
		"close, bad code":      {masked(0x88, []byte{0, 1}), ProtocolError},
		"close, reserved code": {masked(0x88, []byte{0x03, 0xee}), ProtocolError},
		"close, not UTF-8":     {masked(0x88, []byte{0x03, 0xe8, 0xff}), ProtocolError},
		"too big":              {masked(0x82, make([]byte, 2000)), TooBig},
		"too big in fragments": {join(masked(0x02, make([]byte, 600)), masked(0x80, make([]byte, 600))), TooBig},
		"announced 2^63":       {[]byte{0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}, TooBig},
		"announced 2^64-1":     {[]byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, TooBig},
	} {
		c, f := conn(x.in, false)
		_, err := c.Read(1000)
		var v *Error
		if !errors.As(err, &v) || v.Code != x.code {
			t.Errorf("%s: %v, want %d", name, err, x.code)
			continue
		}
		if out := f.out.Bytes(); len(out) != 4 || out[0] != 0x88 || int(binary.BigEndian.Uint16(out[2:])) != x.code {
			t.Errorf("%s: answered %x", name, out)
		}
	}
	c, f := conn(masked(0x88, []byte{0x03, 0xe8, 'b', 'y', 'e'}), false)
	if _, err := c.Read(1000); err != io.EOF || !bytes.Equal(f.out.Bytes(), []byte{0x88, 2, 3, 0xe8}) {
		t.Errorf("close: %v, answered %x", err, f.out.Bytes())
	}
	c, _ = conn(masked(0x82, []byte("hello"))[:8], false)
	if _, err := c.Read(1000); err != io.ErrUnexpectedEOF {
		t.Errorf("cut: %v", err)
	}
}

// TestLimits: also of what a small message inflates to.
func TestLimits(t *testing.T) {
	c, _ := conn(masked(0xc2, deflated(strings.Repeat("\x00", 1<<20))), true)
	var v *Error
	if _, err := c.Read(1 << 16); !errors.As(err, &v) || v.Code != TooBig {
		t.Errorf("bomb: %v", err)
	}
	c, _ = conn(masked(0xc2, []byte{0xff, 0xff}), true)
	if _, err := c.Read(1 << 16); !errors.As(err, &v) || v.Code != BadText {
		t.Errorf("garbage: %v", err)
	}
}

func TestUpgrade(t *testing.T) {
	for name, change := range map[string]func(http.Header){
		"version": func(h http.Header) { h.Set("Sec-Websocket-Version", "8") },
		"key":     func(h http.Header) { h.Set("Sec-Websocket-Key", "short") },
		"no key":  func(h http.Header) { h.Del("Sec-Websocket-Key") },
		"upgrade": func(h http.Header) { h.Set("Connection", "keep-alive") },
	} {
		r := httptest.NewRequest("GET", "/any", nil)
		r.Header.Set("Connection", "keep-alive, Upgrade")
		r.Header.Set("Upgrade", "websocket")
		r.Header.Set("Sec-Websocket-Version", "13")
		r.Header.Set("Sec-Websocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
		change(r.Header)
		w := httptest.NewRecorder()
		var refused *Refused
		if _, err := Upgrade(w, r, nil); !errors.As(err, &refused) || refused.Status != 400 && refused.Status != 426 || w.Body.Len() > 0 {
			t.Errorf("%s: %v, answered %q", name, err, w.Body)
		}
	}
	for offer, want := range map[string]bool{
		"permessage-deflate; client_max_window_bits": true, "permessage-deflate": true, "": false, "x-webkit-deflate-frame": false,
		"permessage-deflate; server_max_window_bits=10": false, "permessage-deflate; server_max_window_bits=15": true,
		"permessage-deflate; server_max_window_bits=10, permessage-deflate": true, "permessage-deflate; unknown": false,
		"permessage-deflate; server_no_context_takeover; client_no_context_takeover": true,
	} {
		if got := deflateOffered([]string{offer}); got != want {
			t.Errorf("%q: %t", offer, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(masked(0x82, []byte("hello")), true)
	f.Add(join(masked(0x02, []byte("he")), masked(0x89, nil), masked(0x80, []byte("llo"))), false)
	f.Add(masked(0xc2, deflated("hello")), true)
	f.Add([]byte{0x82, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, false)
	f.Fuzz(func(t *testing.T, in []byte, deflate bool) {
		c, _ := conn(in, deflate)
		for {
			const limit = 1 << 16
			b, err := c.Read(limit)
			if err != nil {
				return
			}
			if len(b) > limit {
				t.Fatalf("%d bytes", len(b))
			}
		}
	})
}
