package gateway

import (
	"context"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/auth"
)

// KeySet is a remote key set as it is now: how many of its keys can be used, or
// why none can.
type KeySet = auth.KeySet

// CheckKeys fetches the remote key sets of c, as a gateway does.
func CheckKeys(ctx context.Context, c config.Auth) []KeySet { return auth.Check(ctx, c) }
