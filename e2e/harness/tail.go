package harness

import (
	"fmt"
	"strings"
	"sync"
)

// tail keeps the last lines of a process's output.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu; at most tailBytes
}

const tailBytes = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - tailBytes; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) printf(format string, args ...any) { fmt.Fprintf(t, format, args...) }

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}
