package coding

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestCombine(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		a, b := make([]byte, r.IntN(3000)), make([]byte, r.IntN(70000))
		for i := range a {
			a[i] = byte(r.Uint32())
		}
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if got, want := SumOf(a).Add(SumOf(b)), SumOf(append(a, b...)); got != want {
			t.Fatalf("%d and %d bytes: %v, want %v", len(a), len(b), got, want)
		}
	}
}

// TestSegments decodes with the standard library's gzip and with zstd while the
// stream is being written.
func TestSegments(t *testing.T) {
	for _, c := range []Coding{Gzip, Zstd} {
		t.Run(c.String(), func(t *testing.T) {
			in, out := io.Pipe()
			var sum Sum
			var lines []string
			for i := range 50 {
				lines = append(lines, fmt.Sprintf("{\"line\":%d,%q:1}\n", i, strings.Repeat("x", i*i)))
			}
			go func() {
				header := AppendHeader(nil, c)
				for _, l := range lines {
					s := AppendSegment(header, c, []byte(l))
					header = nil
					sum = sum.Add(SumOf([]byte(l)))
					if _, err := out.Write(s); err != nil {
						return
					}
				}
				_, _ = out.Write(AppendTrailer(nil, c, sum))
				_ = out.Close()
			}()
			var r io.Reader
			if c == Gzip {
				z, err := gzip.NewReader(in)
				if err != nil {
					t.Fatal(err)
				}
				r = z
			} else {
				z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1))
				if err != nil {
					t.Fatal(err)
				}
				defer z.Close()
				r = z
			}
			got, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.Join(lines, ""); string(got) != want {
				t.Fatalf("got %d bytes, want %d", len(got), len(want))
			}
		})
	}
}

func BenchmarkSegment(b *testing.B) {
	var plain bytes.Buffer
	for i := range 1000 {
		fmt.Fprintf(&plain, `{"op_id":"%d","op":"PUT","object_type":"todos","object_id":"t%d","checksum":%d,"data":"{\"id\":\"t%d\",\"title\":\"buy %x\"}"},`, i, i, i*7919, i, i*104729)
	}
	for _, size := range []int{200, plain.Len()} {
		for _, c := range []Coding{Gzip, Zstd} {
			b.Run(fmt.Sprintf("%s/%d", c, size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				var dst []byte
				for b.Loop() {
					dst = AppendSegment(dst[:0], c, plain.Bytes()[:size])
				}
				b.ReportMetric(float64(size)/float64(len(dst)), "ratio")
			})
		}
	}
}
