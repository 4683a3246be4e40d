package storetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

func testWriteCheckpoints(t *suite) {
	create := func(visible, want string, requests ...store.WriteCheckpointRequest) {
		t.Helper()
		made, err := t.s.CreateWriteCheckpoints(t.ctx, model.Position(visible), requests)
		t.check(err)
		var ids []string
		for _, m := range made {
			ids = append(ids, fmt.Sprint(m.UserKey, m.ID, m.Head))
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("made %s, want %s", got, want)
		}
	}
	reached := func(position, want string) {
		t.Helper()
		ids, err := t.s.Reached(t.ctx, model.Position(position), []string{"u", "v", "w"})
		t.check(err)
		if got := fmt.Sprint(ids); got != want {
			t.Errorf("reached at %s: %s, want %s", position, got, want)
		}
	}
	request := func(key string, id uint64, head string) store.WriteCheckpointRequest {
		return store.WriteCheckpointRequest{UserKey: key, ID: id, Head: model.Position(head)}
	}
	create("0", "u1a u2b v1b", request("u", 0, "a"), request("u", 0, "b"), request("v", 0, "b"))
	reached("a", "[0 0 0]") // a newer number takes an unreached one's place
	reached("b", "[2 1 0]")
	create("b", "u3d", request("u", 0, "d"))
	reached("c", "[2 1 0]") // INV-26: what was reached stays
	reached("d", "[3 1 0]")
	create("d", "u7e", request("u", 7, "e"))
	create("d", "u7e", request("u", 5, "z")) // lower: nothing changes
	create("d", "u7e", request("u", 7, "z")) // equal: the head stays
	create("d", "w9223372036854775807f", request("w", 1<<63-1, "f"))
	t.reopen()
	reached("d", "[3 1 0]")
	reached("f", "[7 1 9223372036854775807]")
	unreached := func(position, want string) {
		t.Helper()
		var got []string
		for w, err := range t.s.Unreached(t.ctx, model.Position(position)) {
			t.check(err)
			got = append(got, fmt.Sprint(w.UserKey, w.ID, w.Head))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("unreached at %s: %s, want %s", position, s, want)
		}
	}
	unreached("d", "u7e w9223372036854775807f")
	unreached("f", "")
}

// testCreateAtOnce: whoever asks at the same time gets numbers of his own, also
// within one call.
func testCreateAtOnce(t *suite) {
	const callers, calls = 8, 10
	made := make([][]uint64, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for range calls {
				out, err := t.s.CreateWriteCheckpoints(t.ctx, "", []store.WriteCheckpointRequest{{UserKey: "u", Head: "a"}, {UserKey: fmt.Sprint("of ", i), Head: "a"}, {UserKey: "u", Head: "b"}})
				if err != nil {
					t.Error(err)
					return
				}
				made[i] = append(made[i], out[0].ID, out[2].ID)
			}
		})
	}
	wg.Wait()
	var all []uint64
	for _, ids := range made {
		if !slices.IsSorted(ids) {
			t.Errorf("one caller got %v", ids)
		}
		all = append(all, ids...)
	}
	slices.Sort(all)
	if all = slices.Compact(all); len(all) != 2*callers*calls || all[len(all)-1] != uint64(len(all)) {
		t.Errorf("%d calls for two numbers got %v", callers*calls, all)
	}
	t.reopen()
	if ids, err := t.s.Reached(t.ctx, "b", []string{"u", "of 3"}); err != nil || ids[0] != 2*callers*calls || ids[1] != calls {
		t.Errorf("reached %v %v", ids, err)
	}
}
