// Command conformance runs a folder of conformance vectors and prints, for each
// level and area, what passed and failed.
package main

import (
	"fmt"
	"os"

	"github.com/sluicesync/sluice/libs/rules/conformance"
)

func main() {
	args := os.Args[1:]
	verbose := len(args) > 0 && args[0] == "-v"
	if verbose {
		args = args[1:]
	}
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "usage: conformance [-v] DIR")
		os.Exit(2)
	}
	files, err := conformance.Load(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	report := conformance.Run(files, nil)
	report.Write(os.Stdout, verbose)
	if _, failed := report.Totals(); failed > 0 {
		os.Exit(1)
	}
}
