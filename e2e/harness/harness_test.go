package harness

import (
	"bufio"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers each line with its name and the line; it ends with the test.
func echo(t *testing.T, name string) (address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					fmt.Fprintf(conn, "%s %s\n", name, lines.Text())
				}
			}()
		}
	}()
	return l.Addr().String(), func() { l.Close() }
}

func ask(t *testing.T, b *Balancer) (answer string, conn net.Conn) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintln(conn, "hello")
	answer, err = bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(answer), conn
}

func TestBalancer(t *testing.T) {
	one, stopOne := echo(t, "one")
	two, _ := echo(t, "two")
	b := StartBalancer(t, one, two)
	first, _ := ask(t, b)
	second, conn := ask(t, b)
	got := []string{first, second}
	slices.Sort(got)
	if want := []string{"one hello", "two hello"}; !slices.Equal(got, want) {
		t.Errorf("two connections reached %v, want %v", got, want)
	}
	stopOne()
	for range 3 {
		if answer, _ := ask(t, b); answer != "two hello" {
			t.Errorf("with one backend down: %q", answer)
		}
	}
	b.Cut()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("a connection is open after Cut: %v", err)
	}
}

func TestPostgresComesBack(t *testing.T) {
	p := StartPostgres(t, NeedsServers(t))
	p.Exec("CREATE TABLE a (x int); INSERT INTO a VALUES (1), (NULL)")
	url := p.URL
	for _, mode := range []string{"fast", "immediate"} {
		p.Stop(mode)
		p.Start()
		if p.URL != url {
			t.Errorf("%s: %s became %s", mode, url, p.URL)
		}
		rows, err := p.Rows("SELECT x, 'a' FROM a ORDER BY x")
		if want := []string{"1|a", "NULL|a"}; err != nil || !slices.Equal(rows, want) {
			t.Errorf("%s: %q %v, want %q", mode, rows, err, want)
		}
	}
	if rows, err := p.Rows("SHOW wal_level"); err != nil || rows[0] != "logical" {
		t.Errorf("wal_level %q %v", rows, err)
	}
}

func TestAlive(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if !alive(pid) {
		t.Error("a running process is not alive")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDead(t, "cat", pid, 5*time.Second) // still a zombie: nobody has waited for it
	in.Close()
	cmd.Wait()
}

func TestDifference(t *testing.T) {
	got := difference([]string{"a", "b", "b", "x"}, []string{"a", "b", "c", "c"})
	want := `4 rows, want 4; 2 too many ["b" "x"], 2 missing ["c" "c"]`
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
