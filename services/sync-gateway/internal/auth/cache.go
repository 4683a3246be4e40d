package auth

import (
	"sync"
	"time"
)

// cache remembers tokens that were verified: a client shows the same one with
// each of its requests, and checking a signature costs more than the rest of
// most of them. An entry holds only as long as the keys are those it was
// verified with. Tokens that were refused are not remembered, so nobody can
// push others out without valid tokens.
type cache struct {
	mu       sync.Mutex
	new, old map[string]verified // by the token's text; guarded by mu
}

// verified is a token and the version of the keys that it was verified with.
type verified struct {
	token *Token
	keys  uint64
}

// cacheSize is how many tokens one generation has; there are two.
const cacheSize = 4096

// get returns the token of text if it is known and not expired.
func (c *cache) get(text string, keys uint64, now time.Time) *Token {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.new[text]
	if !ok {
		if e, ok = c.old[text]; !ok {
			return nil
		}
		c.add(text, e)
	}
	if e.keys != keys || !now.Before(e.token.Expires.Add(leeway)) {
		return nil
	}
	return e.token
}

// put remembers a token that was verified with keys of this version or newer ones.
func (c *cache) put(text string, t *Token, keys uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(text, verified{t, keys})
}

// add is put under mu.
func (c *cache) add(text string, e verified) {
	if c.new == nil || len(c.new) >= cacheSize {
		c.new, c.old = make(map[string]verified), c.new
	}
	c.new[text] = e
}
