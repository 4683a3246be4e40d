package gateway

import "net/http"

func (g *gateway) admin() http.Handler { return nil }
