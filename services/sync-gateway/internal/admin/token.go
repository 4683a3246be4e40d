package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

// holder is who has a token.
type holder struct {
	name   string            // what logs and deployments call it
	sum    [sha256.Size]byte // of the token
	full   bool              // may do everything
	scopes []config.Scope
}

// holders are those of api.tokens, which are called by their place, and of
// sluice.api.tokens.
func holders(full []string, scoped []config.AdminToken) []holder {
	var out []holder
	for i, t := range full {
		out = append(out, holder{name: fmt.Sprintf("api.tokens[%d]", i), sum: sha256.Sum256([]byte(t)), full: true})
	}
	for _, t := range scoped {
		out = append(out, holder{name: t.Name, sum: sha256.Sum256([]byte(t.Token)), scopes: t.Scopes})
	}
	return out
}

// authorize finds whose token header shows. It looks at all of them, each in
// constant time.
func (a *API) authorize(header string) (*holder, error) {
	token, ok := strings.CutPrefix(header, "Token ")
	if !ok {
		token, ok = strings.CutPrefix(header, "Bearer ")
	}
	given := sha256.Sum256([]byte(token))
	found := -1
	for i := range a.holders {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(given[:], a.holders[i].sum[:]), i, found)
	}
	if !ok || found < 0 {
		return nil, errs.New(errs.S2101, "Authorization failed")
	}
	return &a.holders[found], nil
}

// may returns an error unless h has one of the scopes; without any, unless it
// may do everything.
func (h *holder) may(scopes []config.Scope) error {
	if h.full || slices.ContainsFunc(scopes, func(s config.Scope) bool { return slices.Contains(h.scopes, s) }) {
		return nil
	}
	if len(scopes) == 0 {
		return errs.New(errs.S9020, "Not allowed: only a token of api.tokens may do this")
	}
	var names []string
	for _, s := range scopes {
		names = append(names, string(s))
	}
	return errs.New(errs.S9020, "Not allowed: the token needs the scope %s", strings.Join(names, " or "))
}

// audit logs that something was changed, or looked into, and by whom.
func (a *API) audit(c *call, action string, args ...any) {
	address, _, err := net.SplitHostPort(c.r.RemoteAddr)
	if err != nil {
		address = c.r.RemoteAddr
	}
	a.o.Log.Info("audit", append([]any{"action", action, "by", c.who.name, "address", address, "request", c.id}, args...)...)
}
