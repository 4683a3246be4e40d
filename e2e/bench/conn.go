package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
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
	if err := c.send(method, path, token, header, body); err != nil {
		return nil, err
	}
	return http.ReadResponse(c.reader, nil)
}

func (c *conn) send(method, path, token, header string, body []byte) error {
	c.out = fmt.Appendf(c.out[:0], "%s %s HTTP/1.1\r\nHost: bench\r\nAuthorization: Token %s\r\n%s", method, path, token, header)
	if len(body) > 0 {
		c.out = fmt.Appendf(c.out, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	c.out = append(append(c.out, "\r\n"...), body...)
	_, err := c.Write(c.out)
	return err
}

// answer reads the body of a short answer, whose status must be 200. It is valid until
// the next request. To make an http.Response of each takes longer than all else that a
// caller in a loop does.
func (c *conn) answer() ([]byte, error) {
	status, err := c.reader.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	good, length := bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")), 0
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		if len(line) == len("\r\n") {
			break
		}
		if digits, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(digits))); err != nil {
				return nil, err
			}
		}
	}
	c.out = slices.Grow(c.out[:0], length)[:length]
	if _, err := io.ReadFull(c.reader, c.out); err != nil {
		return nil, err
	}
	if !good {
		return nil, fmt.Errorf("refused: %s", c.out)
	}
	return c.out, nil
}

// refusal is the error of an answer other than the one asked for.
func refusal(r *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(r.Body, 1000))
	return fmt.Errorf("%s: %s (%v)", r.Status, text, err)
}
