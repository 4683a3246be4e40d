// Command mongofake runs the fake MongoDB server of package mongotest, for tests
// of whole processes: it prints its URI, and ends when its input does.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/sluicesync/sluice/services/bucket-store/internal/mongotest"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "mongofake:", err)
		os.Exit(1)
	}
}

func run() error {
	s, err := mongotest.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer s.Stop()
	fmt.Printf("mongodb://%s/\n", s.Address())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
