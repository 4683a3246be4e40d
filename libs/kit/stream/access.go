package stream

import (
	"github.com/sluicesync/sluice/libs/kit/certificate"
)

// Permissions are the subjects that a role may publish to and subscribe to. What
// is not named is denied.
type Permissions struct{ Publish, Subscribe []string }

const api = "$JS.API."

// Access has the permissions of each role that uses NATS, where the server tells
// roles apart by their certificates (TestRoles of services/sluice/internal/nats).
var Access = map[certificate.Role]Permissions{
	certificate.BucketStore: {Publish: []string{AllCheckpoints}, Subscribe: []string{AllCheckpoints}},
	certificate.Gateway:     {Subscribe: []string{AllCheckpoints}},
	certificate.Replicator: {
		Publish: []string{
			allChanges,
			api + "STREAM.CREATE." + Name, api + "STREAM.UPDATE." + Name, api + "STREAM.INFO." + Name,
			api + "DIRECT.GET." + Name, api + "STREAM.MSG.GET." + Name,
		},
		Subscribe: []string{inbox(certificate.Replicator) + ".>"},
	},
	certificate.Evaluator: {
		Publish: []string{
			api + "STREAM.CREATE." + Name, api + "STREAM.UPDATE." + Name, api + "STREAM.INFO." + Name,
			api + "CONSUMER.CREATE." + Name + "." + Evaluators, api + "CONSUMER.MSG.NEXT." + Name + "." + Evaluators,
			"$JS.ACK." + Name + "." + Evaluators + ".>",
		},
		Subscribe: []string{inbox(certificate.Evaluator) + ".>"},
	},
}

// inbox is before the subjects on which a role gets its answers: others may not
// listen there.
func inbox(r certificate.Role) string { return "_INBOX." + string(r) }
