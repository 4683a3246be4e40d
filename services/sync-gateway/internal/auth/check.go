package auth

import (
	"context"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// KeySet is a remote key set as it is now.
type KeySet struct {
	URI  string
	Keys int // that can be used
	Err  error
}

// Check fetches every remote key set of c once, under the rules by which
// tokens are verified with them.
func Check(ctx context.Context, c config.Auth) []KeySet {
	g := &guard{ranges: c.Reject, no6: c.BlockIPv6}
	uris := c.JWKSURIs
	if c.SupabaseJWKS != "" {
		uris = append(uris[:len(uris):len(uris)], c.SupabaseJWKS)
	}
	var out []KeySet
	for _, uri := range uris {
		set := KeySet{URI: uri}
		r, err := newRemote(ctx, uri, g, uri == c.SupabaseJWKS)
		if err == nil {
			var keys []key
			keys, err = r.fetch()
			set.Keys = len(keys)
		}
		set.Err = err
		out = append(out, set)
	}
	return out
}
