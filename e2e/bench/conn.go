package bench

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// conn is an HTTP/1.1 connection that costs the machine as little as one can:
// no goroutine, no pool. What is measured is the server, and both share the cores.
type conn struct {
	net.Conn
	reader *bufio.Reader
	out    []byte // of the request that is being written
}

// dial connects to the host of a URL.
func dial(url string) (*conn, error) {
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, reader: bufio.NewReaderSize(c, 4<<10)}, nil
}

// do sends a request and reads the answer's header. Its body must be read to the end
// before the next request.
func (c *conn) do(method, path, token, accept string, body []byte) (*http.Response, error) {
	c.out = fmt.Appendf(c.out[:0], "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Token %s\r\nAccept: %s\r\n", method, path, c.RemoteAddr(), token, accept)
	if len(body) > 0 {
		c.out = fmt.Appendf(c.out, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	c.out = append(append(c.out, "\r\n"...), body...)
	if _, err := c.Write(c.out); err != nil {
		return nil, err
	}
	return http.ReadResponse(c.reader, nil)
}

// refusal is the error of an answer other than 200.
func refusal(r *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(r.Body, 1000))
	return fmt.Errorf("%s: %s (%v)", r.Status, text, err)
}
