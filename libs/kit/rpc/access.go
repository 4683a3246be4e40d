package rpc

import (
	"context"
	"fmt"
	"net/url"
	"slices"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/service"
)

const prefix = "/sluice.v1."

var (
	gateway    = []certificate.Role{certificate.Gateway}
	replicator = []certificate.Role{certificate.Replicator}
	compactor  = []certificate.Role{certificate.Compactor}
)

// passed are methods that only the bucket-store answers that writes to the
// storage: the others pass the calls of these roles on to it.
func passed(roles ...certificate.Role) []certificate.Role {
	return append(roles, certificate.BucketStore)
}

// Access says of each method which roles may call it, where there is TLS between
// services. What is not in it nobody may call. (That it has every method of
// proto/ is held by TestAccess of services/sluice/internal/nats.)
//
// A gateway reads. What it may change is what its own clients ask for by its
// endpoints: write checkpoints, and by the admin API a deploy, a teardown, a
// compaction, a backup and SQL.
var Access = map[string][]certificate.Role{
	prefix + "Appender/Apply":        passed(certificate.Evaluator),
	prefix + "Appender/PreviousRows": passed(certificate.Evaluator),

	prefix + "Replication/OpenSession":  passed(certificate.Replicator),
	prefix + "Replication/RenewLease":   passed(certificate.Replicator),
	prefix + "Replication/CloseSession": passed(certificate.Replicator),
	prefix + "Replication/Committed":    replicator,
	prefix + "Replication/ReportError":  passed(certificate.Replicator),
	prefix + "Replication/Restart":      passed(certificate.Replicator),
	prefix + "Replication/Terminate":    passed(certificate.Replicator),

	prefix + "Catalog/Deploy":   passed(certificate.Evaluator, certificate.Gateway),
	prefix + "Catalog/Watch":    {certificate.Replicator, certificate.Evaluator, certificate.Gateway},
	prefix + "Catalog/List":     {certificate.Evaluator, certificate.Compactor, certificate.Gateway},
	prefix + "Catalog/Teardown": passed(certificate.Gateway),

	prefix + "Reader/Head":      gateway,
	prefix + "Reader/Lookups":   gateway,
	prefix + "Reader/Checksums": gateway,
	prefix + "Reader/Ops":       gateway,

	prefix + "WriteCheckpoints/Create":  passed(certificate.Gateway),
	prefix + "WriteCheckpoints/Reached": gateway,

	prefix + "Compaction/Hold":           passed(certificate.Compactor),
	prefix + "Compaction/Release":        passed(certificate.Compactor),
	prefix + "Compaction/Dirtiest":       passed(certificate.Compactor),
	prefix + "Compaction/Scan":           compactor,
	prefix + "Compaction/Replace":        passed(certificate.Compactor),
	prefix + "Compaction/Reemit":         passed(certificate.Compactor),
	prefix + "Compaction/CompactLookups": passed(certificate.Compactor),
	prefix + "Compaction/ExpireRequests": passed(certificate.Compactor),

	prefix + "Storage/Backup": gateway,

	prefix + "Source/Position":   gateway,
	prefix + "Source/Mark":       gateway,
	prefix + "Source/Diagnose":   gateway,
	prefix + "Source/Schema":     gateway,
	prefix + "Source/ExecuteSQL": gateway,

	prefix + "Compactor/Compact": gateway,

	"/grpc.health.v1.Health/Check": certificate.Roles,
	"/grpc.health.v1.Health/List":  certificate.Roles,
	"/grpc.health.v1.Health/Watch": certificate.Roles,
}

// admit returns an error, and leaves a line in the log, if the caller may not call
// the method.
func admit(ctx context.Context, env service.Env, method string) error {
	if env.TLS == nil {
		return nil
	}
	role, address := certificate.Role(""), ""
	var identity []*url.URL
	if p, ok := peer.FromContext(ctx); ok {
		address = p.Addr.String()
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			if role = env.TLS.RoleOf(info.State); slices.Contains(Access[method], role) {
				return nil
			}
			identity = info.State.PeerCertificates[0].URIs
		}
	}
	env.Log.Warn("audit", "action", "call denied", "method", method, "role", role, "identity", fmt.Sprint(identity), "peer", address, "code", string(errs.S9011))
	if role == "" {
		return errs.New(errs.S9011, "the certificate is of no role, and may not call %s", method)
	}
	return errs.New(errs.S9011, "%s may not call %s", role, method)
}
