package nats

import (
	"fmt"
	"strings"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/stream"
)

// users are the roles with what stream.Access gives them. Others, such as the
// compactor, have no business here and are refused.
func users(identities string) []*server.User {
	var all []*server.User
	for _, r := range certificate.Roles {
		if p, ok := stream.Access[r]; ok {
			all = append(all, &server.User{
				Username: certificate.Identity(identities, r),
				Permissions: &server.Permissions{
					Publish: subjects(p.Publish), Subscribe: subjects(p.Subscribe),
				},
			})
		}
	}
	return all
}

func subjects(allowed []string) *server.SubjectPermission {
	if len(allowed) == 0 {
		return &server.SubjectPermission{Deny: []string{">"}}
	}
	return &server.SubjectPermission{Allow: allowed}
}

// Settings are those of a NATS server of one's own, as its configuration file has
// them, that make it treat roles as Start's does.
func Settings(identities string) string {
	var b strings.Builder
	b.WriteString("# Made by `sluice nats --roles`. Include it beside tls { verify_and_map: true }.\n")
	b.WriteString("authorization {\n  users = [\n")
	list := func(verb string, allowed []string) {
		if len(allowed) == 0 {
			fmt.Fprintf(&b, "        %s: { deny: \">\" }\n", verb)
			return
		}
		fmt.Fprintf(&b, "        %s: { allow: [\n", verb)
		for _, s := range allowed {
			fmt.Fprintf(&b, "          %q\n", s)
		}
		b.WriteString("        ] }\n")
	}
	for _, r := range certificate.Roles {
		if p, ok := stream.Access[r]; ok {
			fmt.Fprintf(&b, "    {\n      user: %q\n      permissions: {\n", certificate.Identity(identities, r))
			list("publish", p.Publish)
			list("subscribe", p.Subscribe)
			b.WriteString("      }\n    }\n")
		}
	}
	b.WriteString("  ]\n}\n")
	return b.String()
}
