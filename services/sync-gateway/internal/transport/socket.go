package transport

import "net/http"

func (s *Server) socket(c *call) { c.w.WriteHeader(http.StatusNotImplemented) }
