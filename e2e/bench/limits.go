package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// limits are what this machine can do at best, measured in the same run: what
// the results are to be read beside.
func limits() (map[string]any, error) {
	fsync, err := fsyncTimes()
	if err != nil {
		return nil, fmt.Errorf("measure fsync: %w", err)
	}
	trip, err := roundTrips()
	if err != nil {
		return nil, fmt.Errorf("measure the loopback: %w", err)
	}
	encode, decode, err := jsonSpeed()
	if err != nil {
		return nil, fmt.Errorf("measure JSON: %w", err)
	}
	return map[string]any{
		"fsync_4k_p50_ms":            percentile(fsync, 0.5),
		"fsync_4k_p99_ms":            percentile(fsync, 0.99),
		"loopback_round_trip_p50_ms": percentile(trip, 0.5),
		"loopback_round_trip_p99_ms": percentile(trip, 0.99),
		"memory_copy_mb_per_s":       copySpeed(),
		"json_encode_rows_per_s":     encode,
		"json_decode_rows_per_s":     decode,
	}, nil
}

// fsyncTimes appends 4 KiB and waits for the disk, as a commit does.
func fsyncTimes() ([]time.Duration, error) {
	dir, err := os.MkdirTemp("", "sluice-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	f, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	page := make([]byte, 4<<10)
	times := make([]time.Duration, 200)
	for i := range times {
		begin := time.Now()
		if _, err := f.Write(page); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		times[i] = time.Since(begin)
	}
	return times, nil
}

// roundTrips sends 64 bytes to and fro over TCP on this machine.
func roundTrips() ([]time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	echoed := make(chan error, 1) // one value: that of the echo
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			c.Close()
		}
		echoed <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	text := make([]byte, 64)
	times := make([]time.Duration, 2000)
	for i := range times {
		begin := time.Now()
		if _, err = c.Write(text); err == nil {
			_, err = io.ReadFull(c, text)
		}
		if err != nil {
			break
		}
		times[i] = time.Since(begin)
	}
	c.Close()
	if echo := <-echoed; err == nil {
		err = echo
	}
	return times, err
}

// copySpeed copies 64 MiB blocks, larger than the caches.
func copySpeed() float64 {
	const size, times = 64 << 20, 8
	from, to := make([]byte, size), make([]byte, size)
	copy(to, from) // so that the pages are there
	begin := time.Now()
	for range times {
		copy(to, from)
	}
	return float64(size*times) / (1 << 20) / time.Since(begin).Seconds()
}

// jsonSpeed encodes and decodes a row of about 200 bytes with the standard
// library, on one core.
func jsonSpeed() (encode, decode float64, err error) {
	const times = 50_000
	type row struct {
		ID    int64  `json:"id"`
		Owner string `json:"owner"`
		Seq   int64  `json:"seq"`
		Body  string `json:"body"`
	}
	r := row{1, "u1", 2, strings.Repeat("0123456789abcdef", 8)}
	var text []byte
	begin := time.Now()
	for range times {
		if text, err = json.Marshal(&r); err != nil {
			return 0, 0, err
		}
	}
	encode = times / time.Since(begin).Seconds()
	begin = time.Now()
	for range times {
		if err := json.Unmarshal(text, &r); err != nil {
			return 0, 0, err
		}
	}
	return encode, times / time.Since(begin).Seconds(), nil
}
