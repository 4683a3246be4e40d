package gateway

import (
	"net/http"

	"github.com/sluicesync/sluice/services/sync-gateway/internal/admin"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/fanout"
)

func (g *gateway) admin() http.Handler {
	return admin.New(admin.Options{
		Store: g.conns.Store, Source: g.conns.Source, Compactor: g.conns.Compactor, Tokens: g.cfg.API.Tokens, Scoped: g.cfg.AdminTokens, Instance: g.env.Instance,
		FromFile: g.cfg.SyncConfigFromFile, SlotPrefix: g.cfg.SlotPrefix, DefaultSchema: g.cfg.DefaultSchema,
		ConnectionID: g.cfg.ConnectionID, Tag: g.cfg.ConnectionTag, DebugAPI: g.cfg.DebugAPI, Heartbeat: g.cfg.Heartbeat,
		Sessions: func() int { return int(g.stats.Sessions.Load()) },
		List: func(user string, most int) ([]fanout.Info, int) {
			hub, err := g.hub()
			if err != nil {
				return nil, 0
			}
			return hub.List(user, most)
		},
		Beats: g.beats, Links: g.links.Heard, Log: g.log,
	})
}
