package certificate

import (
	"crypto/x509"
	"slices"
	"strings"
)

// Role is what a process is to the others: the name of its service.
type Role string

// The roles. Each is the name of the binary that has it; NATS is `sluice nats`.
const (
	BucketStore Role = "bucket-store"
	Replicator  Role = "replicator"
	Evaluator   Role = "rules-evaluator"
	Compactor   Role = "compactor"
	Gateway     Role = "sync-gateway"
	NATS        Role = "nats"
)

// Roles are all there are.
var Roles = []Role{BucketStore, Replicator, Evaluator, Compactor, Gateway, NATS}

// Identity is how a certificate names a role: the URI that is its only one.
func Identity(prefix string, r Role) string { return prefix + string(r) }

// roleOf is the role that c gives whoever has its key; "" = none.
func roleOf(prefix string, c *x509.Certificate) Role {
	if len(c.URIs) != 1 {
		return ""
	}
	name, ok := strings.CutPrefix(c.URIs[0].String(), prefix)
	if r := Role(name); ok && slices.Contains(Roles, r) {
		return r
	}
	return ""
}
