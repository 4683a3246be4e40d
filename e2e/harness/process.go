package harness

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// alive says whether a process runs; one that has ended and was not collected
// by its parent (a zombie) does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !os.IsNotExist(err) || !hasProc()
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return len(rest) > 0 && rest[0] != 'Z'
}

func hasProc() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}

// pidOf reads the pid file that scripts/suite has written for a process.
func (in *Instance) pidOf(name string) (int, error) {
	text, err := os.ReadFile(filepath.Join(in.data, "run", name+".pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// waitDead waits until a process is gone.
func waitDead(t testing.TB, name string, pid int, within time.Duration) {
	t.Helper()
	Eventually(t, within, "end of "+name, func() error {
		if alive(pid) {
			return fmt.Errorf("process %d still runs", pid)
		}
		return nil
	})
}
