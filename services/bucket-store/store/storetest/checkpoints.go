package storetest

import (
	"fmt"
	"strings"

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
