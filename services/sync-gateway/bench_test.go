package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"
)

// rawStream is a stream on a bare connection, which costs its process little.
type rawStream struct{ net.Conn }

func (h *house) raw(t testing.TB, user, body, header string) rawStream {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "POST /sync/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Token %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s",
		mint(user, nil), len(body), header, body); err != nil {
		t.Fatal(err)
	}
	return rawStream{conn}
}

// until reads until s has come.
func (r rawStream) until(t testing.TB, s string, buf []byte) {
	t.Helper()
	n := 0
	for {
		if n == len(buf) {
			copy(buf, buf[n/2:])
			n -= n / 2
		}
		m, err := r.Read(buf[n:])
		if err != nil {
			t.Fatalf("read: %v (%s)", err, buf[:n])
		}
		n += m
		if bytes.Contains(buf[:n], []byte(s)) {
			return
		}
	}
}

// BenchmarkIdle reports what one idle stream holds of heap and stacks, the
// bare connection at the other end (about half a KiB) included.
func BenchmarkIdle(b *testing.B) {
	for _, lists := range []int{0, 20} {
		b.Run(fmt.Sprintf("rows=%d", lists), func(b *testing.B) {
			h := newHouse(b, nil)
			const n = 2000
			h.store.commit(func(tx *tx) {
				for i := range n {
					for j := range lists {
						tx.put(fmt.Sprintf(`1#mine["u%d"]`, i), "lists", fmt.Sprintf("l%d-%d", i, j), `{"id":"x","owner":"somebody"}`)
					}
				}
			})
			buf := make([]byte, 1<<20)
			conns := make([]rawStream, 0, n)
			used := func() uint64 {
				time.Sleep(100 * time.Millisecond)
				runtime.GC()
				debug.FreeOSMemory()
				var s runtime.MemStats
				runtime.ReadMemStats(&s)
				return s.HeapInuse + s.StackInuse
			}
			add := func(k int) {
				for range k {
					c := h.raw(b, fmt.Sprintf("u%d", len(conns)), `{"raw_data":true,"client_id":"5c88e913-8e5e-4105-980c-f18665f01969"}`, "")
					c.until(b, "checkpoint_complete", buf)
					conns = append(conns, c)
				}
			}
			for b.Loop() {
				add(n / 4)
				before := used()
				add(n - len(conns))
				b.ReportMetric(float64(used()-before)/(n-n/4)/1024, "KiB/stream")
				if f := os.Getenv("GATEWAY_HEAP_PROFILE"); f != "" {
					writeHeapProfile(b, f)
				}
				for _, c := range conns {
					_ = c.Close()
				}
				conns = conns[:0]
			}
		})
	}
}

// BenchmarkConnect reports streams a second that reach checkpoint_complete, 16
// at a time.
func BenchmarkConnect(b *testing.B) {
	h := newHouse(b, nil)
	h.store.commit(func(tx *tx) {
		for i := range 1000 {
			tx.put(fmt.Sprintf(`1#mine["u%d"]`, i), "lists", fmt.Sprint(i), `{"id":"x","owner":"somebody"}`)
		}
	})
	b.ResetTimer()
	var wg sync.WaitGroup
	work := make(chan int)
	for range 16 {
		wg.Go(func() {
			buf := make([]byte, 64<<10)
			for i := range work {
				c := h.raw(b, fmt.Sprintf("u%d", i%1000), `{"raw_data":true}`, "")
				c.until(b, "checkpoint_complete", buf)
				_ = c.Close()
			}
		})
	}
	for i := range b.N {
		work <- i
	}
	close(work)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "connects/s")
}

// BenchmarkFanout reports how long one row takes to reach all of the streams on
// a shared bucket.
func BenchmarkFanout(b *testing.B) {
	h := newHouse(b, nil)
	const n = 2000
	buf := make([]byte, 64<<10)
	var conns []rawStream
	for i := range n {
		c := h.raw(b, fmt.Sprintf("u%d", i), `{"raw_data":true}`, "")
		c.until(b, "checkpoint_complete", buf)
		conns = append(conns, c)
	}
	i := 0
	for b.Loop() {
		i++
		h.store.commit(func(tx *tx) {
			tx.put("1#all[]", "news", fmt.Sprint(i), `{"id":"n","text":"`+strings.Repeat("x", 150)+`"}`)
		})
		for _, c := range conns {
			c.until(b, "checkpoint_complete", buf)
		}
	}
	b.ReportMetric(float64(n)*float64(i)/b.Elapsed().Seconds(), "deliveries/s")
	for _, c := range conns {
		_ = c.Close()
	}
}

// BenchmarkDownload reports rows a second for one client of one big bucket.
func BenchmarkDownload(b *testing.B) {
	for name, header := range map[string]string{"identity": "", "gzip": "Accept-Encoding: gzip\r\n", "bson": "Accept: application/vnd.powersync.bson-stream\r\n"} {
		b.Run(name, func(b *testing.B) {
			h := newHouse(b, nil)
			const rows = 50_000
			h.store.commit(func(tx *tx) {
				for i := range rows {
					tx.put("1#all[]", "news", fmt.Sprint(i), fmt.Sprintf(`{"id":"n%d","text":"%s"}`, i, strings.Repeat("y", 170)))
				}
			})
			for b.Loop() {
				c := h.raw(b, "u1", `{"raw_data":true}`, header)
				r := bufio.NewReaderSize(c, 256<<10)
				for { // the header of the response
					l, err := r.ReadString('\n')
					if err != nil {
						b.Fatal(err)
					}
					if l == "\r\n" {
						break
					}
				}
				total, err := drain(httputil.NewChunkedReader(r), name == "gzip")
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(total)
				_ = c.Close()
			}
			b.ReportMetric(rows*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// drain reads until the stream falls silent after its last line.
func drain(r io.Reader, compressed bool) (int64, error) {
	buf := make([]byte, 256<<10)
	var total int64
	tail := make([]byte, 0, 128)
	for {
		n, err := r.Read(buf)
		total += int64(n)
		if err != nil {
			return total, err
		}
		tail = append(tail, buf[max(0, n-64):n]...)
		tail = tail[max(0, len(tail)-64):]
		if bytes.Contains(tail, []byte("checkpoint_complete")) {
			return total, nil
		}
		if compressed && n < 256 && bytes.HasSuffix(tail, []byte{0, 0, 0xff, 0xff}) {
			return total, nil // the short segment of the last line
		}
	}
}
