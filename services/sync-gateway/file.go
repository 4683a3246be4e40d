package gateway

import "github.com/sluicesync/sluice/libs/kit/config"

// FromFile returns the config of the gateway that f describes.
func FromFile(f *config.File) Config {
	c := Config{
		Auth: f.Auth, API: f.API, MaxStreams: f.Sluice.Gateway.MaxStreams, PathPrefix: f.Sluice.Gateway.PathPrefix, TLS: f.Sluice.Gateway.TLS, Limits: f.Sluice.Gateway.Limits,
		AdminTokens: f.Sluice.AdminTokens, DefaultSchema: f.DefaultSchema(), SlotPrefix: f.SlotPrefix(), SyncConfigFromFile: f.Sync != nil,
	}
	if len(f.Connections) > 0 {
		s := &f.Connections[0]
		c.ConnectionID, c.ConnectionTag, c.DebugAPI = s.ID, s.Tag, s.DebugAPI
		if s.Postgres != nil {
			c.Heartbeat = s.Postgres.HeartbeatInterval
		}
	}
	return c
}
