package fanout

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/libs/model"
)

// list describes the hub's sessions, as "user checkpoint missing/ops/ms".
func (r *rig) list(user string, most int) string {
	synctest.Wait()
	list, total := r.hub.List(user, most)
	var out []string
	for _, i := range list {
		ms := int64(0)
		if i.Missing > 0 {
			ms = time.Since(i.Late).Milliseconds()
		}
		out = append(out, fmt.Sprintf("%s %s %d/%d/%d", i.User, i.Checkpoint, i.Missing, i.Ops, ms))
	}
	return fmt.Sprintf("%s of %d", strings.Join(out, "; "), total)
}

// TestList: who is behind, by how much and since when; the slowest come first,
// and who is not concerned is not behind.
func TestList(t *testing.T) {
	inRig(t, plan{fixed: []string{"$user", "all"}}, func(r *rig) {
		open := func(user string) (*Session, *sink) {
			return r.open(user, func(q *Request) { q.Who = Who{User: user, Client: "c", Agent: "sdk", Transport: "http"} })
		}
		expect := func(want string) {
			t.Helper()
			if got := r.list("", 10); got != want {
				t.Fatalf("got  %s\nwant %s", got, want)
			}
		}
		s, slow := open("slow")
		slow.gate = make(chan struct{})
		s.Start(slow)
		time.Sleep(time.Second)
		expect("slow 0 1/0/1000 of 1") // its first checkpoint is on the way
		q, quick := open("quick")
		q.Start(quick)
		expect("slow 0 1/0/1000; quick 0 0/0/0 of 2")
		r.store.commit(func(c *commit) { c.put("all", "1") })
		time.Sleep(time.Second)
		expect("slow 0 2/1/2000; quick 1 0/0/0 of 2")
		r.store.commit(func(c *commit) { c.put("quick", "1"); c.put("nobody", "1") })
		expect("slow 0 2/3/2000; quick 3 0/0/0 of 2")
		slow.gate <- struct{}{} // the first checkpoint is through, and the second is on the way
		expect("slow 0 1/3/1000; quick 3 0/0/0 of 2")
		slow.gate <- struct{}{}
		time.Sleep(time.Second)
		expect("slow 1 0/0/0; quick 3 0/0/0 of 2")
		r.store.commit(func(c *commit) { c.put("slow", "1") })
		time.Sleep(time.Second)
		expect("slow 1 1/3/1000; quick 3 0/0/0 of 2")
		if got := r.list("quick", 10); got != "quick 3 0/0/0 of 1" {
			t.Error(got)
		}
		if got := r.list("", 1); got != "slow 1 1/3/1000 of 2" {
			t.Error(got)
		}
		list, _ := r.hub.List("slow", 1)
		if i := list[0]; i.Who != (Who{"slow", "c", "sdk", "http"}) || i.Buckets != 2 || time.Since(i.Since) != 4*time.Second {
			t.Errorf("%+v", i)
		}
		slow.Abort()
		q.Close(nil)
		if got := r.list("", 10); got != " of 0" {
			t.Error(got)
		}
	})
}

// TestListBusy: a client that keeps up, always with the next checkpoint on its
// way, is as much behind as that.
func TestListBusy(t *testing.T) {
	inRig(t, plan{fixed: []string{"all"}}, func(r *rig) {
		s, k := r.open("u", func(q *Request) { q.Who.User = "u" })
		k.gate = make(chan struct{})
		s.Start(k)
		synctest.Wait()
		for n := range 20 {
			r.store.commit(func(c *commit) { c.put("all", "1") })
			time.Sleep(time.Second)
			k.gate <- struct{}{}
			want := fmt.Sprintf("u %s 1/1/1000 of 1", model.OpID(n))
			if got := r.list("", 1); got != want {
				t.Fatalf("%d: got %s, want %s", n, got, want)
			}
		}
		k.Abort()
	})
}
