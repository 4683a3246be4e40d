package config

import (
	"fmt"
	"strings"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// Problem is one finding about a config.
type Problem struct {
	Key     string // replication.connections[0].port; "" = the file as a whole
	Line    int    // from 1; 0 = no place
	Column  int
	Code    errs.Code
	Message string
}

func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:%d: ", p.Line, p.Column)
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	if p.Code != "" {
		fmt.Fprintf(&b, "[%s] ", p.Code)
	}
	b.WriteString(p.Message)
	return b.String()
}

// Error is a config that cannot be used, with everything that is wrong.
type Error struct {
	Name     string // of the file
	Problems []Problem
}

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = e.Name + ":" + p.String()
		if p.Line == 0 {
			lines[i] = e.Name + ": " + p.String()
		}
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives each problem as an errs.Error, so that errs.CodeOf finds the
// first code.
func (e *Error) Unwrap() []error {
	var all []error
	for _, p := range e.Problems {
		all = append(all, errs.New(p.Code, "%s", p.Message))
	}
	return all
}
