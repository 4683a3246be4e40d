package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// conn is a connection that costs the machine as little as one can: no goroutine,
// no pool. What is measured is the server, and both share the cores.
type conn struct {
	net.Conn
	n      int64 // bytes that came, owned by who reads
	reader *bufio.Reader
	out    []byte // of the request that is being written
}

// headBuffer is for the head of a response and the sizes of its chunks; what is
// in them may be read past it.
const headBuffer = 4 << 10

var dialer = net.Dialer{Timeout: 30 * time.Second}

// dial connects to the host of a URL. buffer is how much is read at once.
func dial(ctx context.Context, url string, buffer int) (*conn, error) {
	nc, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc}
	c.reader = bufio.NewReaderSize(c, buffer)
	return c, nil
}

// Read counts what comes.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n += int64(n)
	return n, err
}

// do sends a request with some more header lines and reads the answer's header. Its
// body must be read to the end before the next request.
func (c *conn) do(method, path, token, header string, body []byte) (*http.Response, error) {
	c.out = fmt.Appendf(c.out[:0], "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Token %s\r\n%s", method, path, c.RemoteAddr(), token, header)
	if len(body) > 0 {
		c.out = fmt.Appendf(c.out, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	c.out = append(append(c.out, "\r\n"...), body...)
	if _, err := c.Write(c.out); err != nil {
		return nil, err
	}
	return http.ReadResponse(c.reader, nil)
}

// refusal is the error of an answer other than the one asked for.
func refusal(r *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(r.Body, 1000))
	return fmt.Errorf("%s: %s (%v)", r.Status, text, err)
}
