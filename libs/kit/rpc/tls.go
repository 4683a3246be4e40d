package rpc

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/service"
)

func serverCredentials(env service.Env) credentials.TransportCredentials {
	if env.TLS == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(env.TLS.Server())
}

func clientCredentials(server certificate.Role, env service.Env) credentials.TransportCredentials {
	if env.TLS == nil {
		return insecure.NewCredentials()
	}
	return dialler{credentials.NewTLS(env.TLS.Client(server)), server, env.TLS}
}

// dialler begins each connection with the certificate and the CAs of then.
type dialler struct {
	credentials.TransportCredentials // for what is the same at any time
	server                           certificate.Role
	keeper                           *certificate.Keeper
}

func (d dialler) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(d.keeper.Client(d.server)).ClientHandshake(ctx, authority, conn)
}

func (d dialler) Clone() credentials.TransportCredentials { return d }
