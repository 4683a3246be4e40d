// Command conformance runs a folder of conformance vectors and prints, for each
// level and area, what passed and failed.
//
// Areas whose code lies above this module are run by tests of their own modules
// (scripts/conformance does that); -tests names files with the JSON output of
// go test, as area=file, and their results are counted here.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/sluicesync/sluice/libs/rules/conformance"
)

func main() {
	verbose := flag.Bool("v", false, "print what is not enforced, too")
	tests := map[string]string{}
	flag.Func("tests", "area=file: results of go test -json for an area", func(s string) error {
		area, file, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("area=file is expected")
		}
		tests[area] = file
		return nil
	})
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: conformance [-v] [-tests area=file]… DIR")
		os.Exit(2)
	}
	files, err := conformance.Load(flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	report, err := conformance.Run(files, tests)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	report.Write(os.Stdout, *verbose)
	if _, failed := report.Totals(); failed > 0 {
		os.Exit(1)
	}
}
