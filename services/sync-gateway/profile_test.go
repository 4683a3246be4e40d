package gateway

import (
	"os"
	"runtime/pprof"
	"testing"
)

func writeHeapProfile(b testing.TB, name string) {
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := pprof.WriteHeapProfile(f); err != nil {
		b.Fatal(err)
	}
}
