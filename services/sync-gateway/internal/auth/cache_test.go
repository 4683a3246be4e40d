package auth

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// TestRemembered: a token is checked once, and again when it may no longer be
// good: after its end, and after any change of the keys.
func TestRemembered(t *testing.T) {
	s := newKeyServer(t, public("a"))
	v, c := remoteVerifier(t, nil, s.URL)
	text := c.token("a")
	verify := func() *Token {
		t.Helper()
		token, err := v.Verify(t.Context(), text)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	verify() // fetches the keys
	first := verify()
	if verify() != first {
		t.Error("checked again without a reason")
	}

	c.add(staleAfter)
	verify() // the keys are fetched again
	settle(v)
	second := verify()
	if second == first {
		t.Error("not checked with the new keys")
	}

	s.serve(public("b"))
	c.add(staleAfter)
	if verify() != second {
		t.Error("the old keys serve while new ones are fetched")
	}
	settle(v)
	if _, err := v.Verify(t.Context(), text); errs.CodeOf(err) != errs.S2101 {
		t.Errorf("its key is gone: %v", err)
	}

	s.serve(public("a"))
	c.add(2 * staleAfter)
	v.version()
	settle(v)
	verify()
	verify()
	c.add(time.Hour)
	v.version()
	settle(v)
	if _, err := v.Verify(t.Context(), text); errs.CodeOf(err) != errs.S2103 {
		t.Errorf("it has expired: %v", err)
	}
}

// TestCacheBound: what is remembered has a bound, and those in use stay.
func TestCacheBound(t *testing.T) {
	var c cache
	now := time.Now()
	token := &Token{Expires: now.Add(time.Hour)}
	c.put("used", token, 0)
	for i := range 5 * cacheSize {
		c.put(fmt.Sprint(i), token, 0)
		if i%1000 == 0 && c.get("used", 0, now) == nil {
			t.Fatalf("forgotten after %d others", i)
		}
	}
	if n := len(c.new) + len(c.old); n > 2*cacheSize {
		t.Errorf("%d are remembered", n)
	}
	if c.get("0", 0, now) != nil {
		t.Error("the first is remembered still")
	}
}
