package postgres

import (
	"bufio"
	"cmp"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

// publication is the one that spec/04 §2 asks for.
const publication = "powersync"

const (
	// connectTimeout bounds an attempt to connect unless the config does.
	connectTimeout = 10 * time.Second
	// catalogTime bounds what asks the catalog, on a connection that may be dead
	// though the kernel does not know.
	catalogTime = 25 * time.Second
)

// readBuffer is how much is read from a connection at once. Copies and logs
// come as many small messages.
const readBuffer = 128 << 10

// connConfig is the driver's config. Values are asked for in the text form that
// converter knows, whatever the server's or role's defaults are.
func connConfig(c *config.Postgres) (*pgx.ConnConfig, error) {
	p, err := pgx.ParseConfig(c.ForDriver())
	if err != nil {
		return nil, errs.New(errs.S1109, "connection options cannot be used") // err may quote them
	}
	if p.TLSConfig, err = c.TLS(); err != nil {
		return nil, err
	}
	p.Fallbacks = nil
	p.ConnectTimeout = cmp.Or(c.ConnectTimeout, connectTimeout)
	p.DefaultQueryExecMode = pgx.QueryExecModeExec
	p.RuntimeParams = map[string]string{
		"application_name":   "sluice",
		"client_encoding":    "UTF8",
		"DateStyle":          "ISO",
		"IntervalStyle":      "postgres",
		"TimeZone":           "UTC",
		"bytea_output":       "hex",
		"extra_float_digits": "1",
	}
	p.DialFunc = c.Dialer().DialContext
	p.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(bufio.NewReaderSize(r, readBuffer), w)
	}
	return p, nil
}
