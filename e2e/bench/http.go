package bench

import (
	"bufio"
	"fmt"
	"io"
	"net/http"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	typeNDJSON = "application/x-ndjson"
	typeBSON   = "application/vnd.powersync.bson-stream"
)

// openHTTP asks for a stream by HTTP.
func openHTTP(s *Stream) (lines, error) {
	body, err := s.request()
	if err != nil {
		return nil, err
	}
	c := &s.client
	accept := typeNDJSON
	if c.Kind.BSON {
		accept = typeBSON
	}
	coding := c.Kind.Coding
	if coding == "" {
		coding = "identity"
	}
	resp, err := s.conn.do(http.MethodPost, "/sync/stream", c.Token, "Accept: "+accept+"\r\nAccept-Encoding: "+coding+"\r\n", body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = refusal(resp)
	}
	if err != nil {
		return nil, err
	}
	if got := resp.Header.Get("Content-Type"); got != accept {
		return nil, fmt.Errorf("the answer is %s, not %s", got, accept)
	}
	if got := resp.Header.Get("Content-Encoding"); got != c.Kind.Coding {
		return nil, fmt.Errorf("the answer's encoding is %q, not %q", got, c.Kind.Coding)
	}
	var plain io.Reader = resp.Body
	end := func() {}
	switch c.Kind.Coding {
	case "gzip":
		if plain, err = gzip.NewReader(plain); err != nil {
			return nil, err
		}
	case "zstd":
		z, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		plain, end = z, z.Close
	}
	r := bufio.NewReaderSize(plain, c.Buffer)
	if c.Kind.BSON {
		return &bsonStream{reader: r, end: end}, nil
	}
	return &ndjsonStream{reader: r, end: end}, nil
}
