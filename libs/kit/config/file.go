// Package config reads the service config: the reference's powersync.yaml with
// its keys, defaults and !env tags (spec/06 §1–2), and our own keys under
// "sluice:".
//
// Invariants:
//
//   - All problems of a file are reported at once, each with its key, line,
//     column and code (TestProblems).
//   - Unknown keys are allowed, as the reference allows them; under "sluice:",
//     which is ours, they are a warning that names the nearest known key
//     (TestUnknownKeys).
//   - D10: no message quotes a value that may be a secret: neither environment
//     variables nor URIs (TestSecretsStay).
//   - Hostile bytes give problems, never a panic (FuzzParse).
package config

import (
	"fmt"
	"net/netip"
	"os"
	"time"
)

// File is a service config with its defaults filled in.
//
// In it and in what it is made of, a field with the tag keys is a row of a table of
// docs/configuration.md (TestReference): its keys below the heading's, the default,
// and the comment as the text. In a default, ' stands for the backquote.
type File struct {
	// Name is what problems call the file; Dir is where relative paths of it
	// start.
	Name string
	Dir  string

	// Connections are the source databases: none or one.
	Connections []Connection
	Storage     Storage
	Auth        Auth
	API         API
	// Port of the gateway's HTTP endpoints; default 8080.
	Port int
	// Sync is the configured sync config, nil if it is deployed through the API.
	Sync *SyncConfig
	// free labels: text by name
	Metadata map[string]string `keys:"metadata"`
	// bucket-store does not change the schema of its tables at the start, and stops if it must be: `sluice
	// migrate up` does it
	DisableAutoMigration bool `keys:"disable_auto_migration" default:"false"`
	Telemetry            Telemetry
	// Probes is nil if not configured: then there are those over HTTP only.
	Probes  *Probes
	Logging Logging
	// text, numbers, true, false, null
	Parameters map[string]any `keys:"parameters"`
	Sluice     Sluice

	// Warnings are findings that do not keep the file from being used.
	Warnings []Problem
}

// SyncConfig says where the sync config is: in the file Path, or else in
// Content.
type SyncConfig struct {
	// a file, relative to this one; looked at every second
	Path string `keys:"path"`
	// the text itself
	Content string `keys:"content"`
	// whether an invalid one stops the start; later ones never do
	ExitOnError bool `keys:"exit_on_error" default:"true"`
}

// Connection is a source database; the field of its Type is set.
type Connection struct {
	// `postgresql`. The file may also describe [others](#other-sources); replication from those
	// is not available
	Type string `keys:"type"`
	// names for people. There is one connection, so every table of a sync config is of it, also
	// `"tag.schema"."table"`, whatever the tag
	ID  string `keys:"id, tag" default:"'default'"`
	Tag string // default "default"
	// allows the admin API's [`execute-sql`](admin-api.md#apiadminv1), which only reads
	DebugAPI bool `keys:"debug_api" default:"false"`

	Postgres *Postgres
	MongoDB  *MongoDB
	MySQL    *MySQL
	MSSQL    *MSSQL
	Convex   *Convex
}

// Postgres is a Postgres connection, of a source or of storage.
type Postgres struct {
	// `postgresql://user:password@host:port/database`; the keys below go before it
	_ struct{} `keys:"uri"`
	// instead of `uri`
	Hostname string `keys:"hostname, port, username, password, database" default:"port 5432"`
	Port     int    // 1024–65535; default 5432
	Username string
	Password string
	Database string
	// `verify-full`, `verify-ca` (needs `cacert`), `disable`
	SSLMode string `keys:"sslmode" default:"'verify-full'"`
	// PEM text
	CACert            string `keys:"cacert, client_certificate, client_private_key"`
	ClientCertificate string
	ClientPrivateKey  string
	// the name that the server's certificate must have
	TLSServerName string `keys:"tls_servername" default:"the host"`
	// addresses that are not connected to: CIDR, or `local`
	Reject Ranges `keys:"reject_ip_ranges" default:"none"`
	// of the replication slot's name
	SlotNamePrefix string `keys:"slot_name_prefix" default:"'powersync_'"`
	// connections
	MaxPoolSize int `keys:"max_pool_size" default:"8"`
	// seconds; also `?connect_timeout=` of the `uri`
	ConnectTimeout time.Duration `keys:"connect_timeout" default:"10"`
	// seconds that the source may send nothing while a table is copied; then the copy goes on over a new
	// connection, from where it was (PSYNC_S1121)
	SnapshotSocketTimeout time.Duration `keys:"snapshot_socket_timeout" default:"30"`
	// seconds between two heartbeats, 5 to 60; leave it out for Sluice's own, of one second. Freshness
	// cannot be known better than that, and `sluice status` waits as much longer before it says stale
	HeartbeatInterval time.Duration `keys:"heartbeat_interval_seconds" default:"1"`
}

// MongoDB is a MongoDB connection, of a source or of storage.
type MongoDB struct {
	URI               string // with its options
	Database          string
	Username          string
	Password          string
	PostImages        string // off (default), auto_configure, read_only
	Reject            Ranges
	MaxPoolSize       int // 0 = the URI's or the driver's
	HeartbeatInterval time.Duration
}

// MySQL is a MySQL or MariaDB source.
type MySQL struct {
	Hostname          string
	Port              int // default 3306
	Username          string
	Password          string
	Database          string
	ServerID          uint32 // default 1
	CACert            string
	ClientCertificate string
	ClientPrivateKey  string
	Reject            Ranges
	BinlogQueueBytes  int64 // default 50 MB
	ConnectTimeout    time.Duration
	ConnectionLimit   int
	QueueLimit        int
}

// MSSQL is a SQL Server source.
type MSSQL struct {
	Hostname               string
	Port                   int // default 1433
	Username               string
	Password               string
	Database               string
	Schema                 string // default dbo
	Azure                  *AzurePrincipal
	CACert                 string
	TLSServerName          string
	TrustServerCertificate bool
	PollingInterval        time.Duration // default 1 s
	PollingBatchSize       int           // default 10
	Reject                 Ranges
	HeartbeatInterval      time.Duration
}

// AzurePrincipal authenticates by an Azure Active Directory service principal.
type AzurePrincipal struct{ ClientID, ClientSecret, TenantID string }

// Convex is a Convex deployment.
type Convex struct {
	DeploymentURL   string
	DeployKey       string
	PollingInterval time.Duration // default 1 s
	RequestTimeout  time.Duration // default 60 s
	Reject          Ranges
}

// Storage says where bucket-store keeps its data.
type Storage struct {
	// a folder; `pebble` is another name for it. Or a database: `postgresql`, `mongodb`
	Type string `keys:"type" default:"'embedded'"`
	// of the embedded store, relative to this file
	Path string `keys:"path" default:"'store' in the data folder"`
	// connections, at least 3; two are for writing. One more holds the right to write
	MaxPoolSize int `keys:"max_pool_size" default:"8"`
	// understood, and of no use
	DefaultStorageVersion int `keys:"default_storage_version" default:"2"`
	// as of a source. It may be the source's server, even the same database, if that is Postgres 14 or
	// later (else PSYNC_S1144)
	Postgres *Postgres `keys:"uri, hostname, port, username, password, database, sslmode, cacert, client_certificate, client_private_key, tls_servername, reject_ip_ranges, connect_timeout" default:"as above, but 'connect_timeout' 30"`
	// that has the tables; it is made if it is not there. Two instances of Sluice need two
	Schema      string `keys:"schema" default:"'sluice'"`
	BatchLimits BatchLimits
	// `mongodb://host,…/database?options` or `mongodb+srv://…`, with the driver's options (`replicaSet`, `tls`,
	// `authSource` …); the other keys go before it. `reject_ip_ranges` as of a source. Two instances of
	// Sluice need two databases
	MongoDB *MongoDB `keys:"uri, database, username, password, reject_ip_ranges" default:""`
	// understood, and of no use: all reads are of the primary, and what is cleared is dropped at once
	BulkReadPreference string  `keys:"bulk_read_preference, clear_batch_throttle_rate, post_images" default:"'primary', 0.2, 'off'"`
	ClearThrottle      float64 // 0–20; default 0.2
}

// BatchLimits bound one storage transaction.
type BatchLimits struct {
	MaxEstimatedSize int64 // default 5,000,000
	// of one commit, which takes at least one batch as it was evaluated
	MaxRecordCount int `keys:"batch_limits.max_record_count, batch_limits.max_estimated_size" default:"2,000 rows, 5,000,000 bytes"`
	// bytes of what is known of source rows that one statement writes
	MaxCurrentDataBatchSize int64 `keys:"batch_limits.max_current_data_batch_size" default:"50,000,000"`
}

// Auth is client_auth: whose tokens clients may show.
type Auth struct {
	// one or a list: a token's `aud` must have one of them
	Audience []string `keys:"audience"`
	// one or a list of http(s) URLs of key sets
	JWKSURIs []string `keys:"jwks_uri"`
	// addresses from which no key set is fetched
	Reject Ranges `keys:"jwks_reject_ip_ranges, block_local_jwks" default:"none"`
	// BlockIPv6 comes with the deprecated block_local_jwks.
	BlockIPv6 bool
	// keys: `oct` (HS256, HS384, HS512), `RSA` (RS…), `EC` (ES…), `OKP` (EdDSA)
	Keys []Key `keys:"jwks.keys"`
	// Supabase Auth: the keys of the project, if the source is at `db.<project>.supabase.co`. Such a
	// token's `aud` must be `authenticated`, whatever `audience` says, and it may live for a week
	Supabase     bool `keys:"supabase" default:"false"`
	SupabaseJWKS string
	// the project's shared secret, for tokens that are signed with it; only with `supabase: true`
	SupabaseSecret string `keys:"supabase_jwt_secret"`
}

// Key is a static JSON web key.
type Key struct {
	// of each, as RFC 7517 says. `RSA` needs `kid`, `n` and `e`; `oct` needs `alg` and `k`; `OKP` needs
	// `alg`, `crv` and `x`; `EC` needs `crv`, `x` and `y`
	Kty, Kid, Alg, Use string `keys:"jwks.keys.kty, .kid, .alg, .use, .key_ops, .k, .n, .e, .crv, .x, .y"`
	KeyOps             []string
	N, E               string // RSA
	K                  string // oct
	Crv, X, Y          string // OKP, EC
}

// API is the admin API's tokens and the limits of clients.
type API struct {
	// what `Authorization: Token …` must show to do anything in the [admin API](admin-api.md); for less,
	// see `sluice.api.tokens`
	Tokens []string `keys:"tokens" default:"none: the admin API is closed"`
	// streams of one gateway process (the reference: 200)
	MaxConnections int `keys:"parameters.max_concurrent_connections" default:"50,000"`
	// reads of the store at once, of all streams of a gateway process
	MaxDataFetch int `keys:"parameters.max_data_fetch_concurrency" default:"10"`
	// buckets of one client
	MaxBuckets int `keys:"parameters.max_buckets_per_connection" default:"1,000"`
	// results of the parameter queries of one client
	MaxParameterResult int `keys:"parameters.max_parameter_query_results" default:"1,000"`
	// how long checkpoint requests are kept after they were last made; the compactor drops older ones that
	// were acknowledged
	CheckpointRequestRetention time.Duration `keys:"parameters.checkpoint_request_retention_minutes" default:"60"`
	// understood, and without effect: counts of buckets are kept up to date
	BucketCountCacheTTL time.Duration `keys:"parameters.bucket_count_cache_ttl_minutes" default:"60"`
}

// Telemetry is the metrics port; nothing is ever sent anywhere.
type Telemetry struct {
	// the private port: metrics, probes, profiles. Nothing is sent to anybody, whatever
	// `disable_telemetry_sharing` says, but to [your own OpenTelemetry
	// collector](operations.md#opentelemetry)
	PrometheusPort int `keys:"telemetry.prometheus_port" default:"off"`
	// understood, and without effect
	_ struct{} `keys:"telemetry.disable_telemetry_sharing, telemetry.internal_service_endpoint"`
}

// Probes says which probes exist (spec/06 §7.2).
type Probes struct {
	// either keeps the files `.probes/startup`, `.probes/ready` and `.probes/poll` in the working
	// directory; unlike with the reference not if `healthcheck.probes` is not given
	Filesystem, Legacy bool `keys:"healthcheck.probes.use_filesystem, healthcheck.probes.use_legacy" default:"false"`
	// understood, and without effect: HTTP probes are always there
	HTTP bool `keys:"healthcheck.probes.use_http" default:"false"`
}

// Logging is how to log.
type Logging struct {
	// `silly`, `debug`, `verbose`, `http`, `info`, `warn`, `error`; `PS_LOG_LEVEL` goes before it. [It can
	// be changed](operations.md#logs) while the process runs
	Level string `keys:"system.logging.level" default:"'info'"`
	// `json` or `text`; `PS_LOG_FORMAT` goes before it
	Format string `keys:"system.logging.format" default:"'json'"`
}

// Sluice is our own section. Each key can be overridden by the environment
// variable that its comment names.
type Sluice struct {
	// not used by `sluice dev`, which has its own
	NATSURL string `keys:"nats.url" default:"'nats://127.0.0.1:4222'"`
	// where bucket-store listens, and where the others find it. For the others it may be a name that stands for several bucket-stores, or several addresses with commas between: calls go round those that answer ([why several](operations.md#several-bucket-stores))
	BucketStore BucketStore `keys:"bucket_store.address" default:"'127.0.0.1:7441'"`
	// the same of the replicator
	Replicator Service `keys:"replicator.address" default:"'127.0.0.1:7442'"`
	// the same of the compactor
	Compactor Compactor `keys:"compactor.address" default:"'127.0.0.1:7443'"`
	Evaluator Evaluator // SLUICE_RULES_EVALUATOR_*
	Gateway   Gateway   // SLUICE_GATEWAY_*
	// TLS is between the services and to NATS: sluice.tls, SLUICE_TLS_*.
	TLS ServicesTLS
	// AdminTokens may do what their scopes say: sluice.api.tokens.
	AdminTokens []AdminToken
	// the data folder, relative to the config file; `SLUICE_DATA`, `sluice dev --data`
	Data string `keys:"data" default:"'sluice-data' in the working directory"`
}

// AdminToken is a token of the admin API that may do only some of it; those of
// api.tokens may do everything.
type AdminToken struct {
	// of each entry of a list: tokens of the [admin API](admin-api.md#tokens) with the scopes `read`,
	// `deploy`, `compact`. A token has at least 16 characters; `!env` keeps it out of the file. No
	// variable of its own
	Name   string `keys:"api.tokens.name, .token, .scopes" default:"none"`
	Token  string
	Scopes []Scope
}

// Scope is a part of the admin API.
type Scope string

const (
	// ScopeRead looks at everything and changes nothing; no SQL.
	ScopeRead Scope = "read"
	// ScopeDeploy deploys and reprocesses, and may follow how that goes.
	ScopeDeploy Scope = "deploy"
	// ScopeCompact compacts.
	ScopeCompact Scope = "compact"
)

// Service is where a service is found.
type Service struct {
	Address string // host:port on which it listens and is dialled
	// the service's private port
	MetricsPort int `keys:"bucket_store.metrics_port, replicator.…, compactor.…, rules_evaluator.…, gateway.…" default:"'telemetry.prometheus_port'"`
}

// BucketStore may be several processes: then those that call them may have all
// their addresses, with commas between.
type BucketStore struct {
	Service
	// where the other bucket-stores of a shared storage call this one, which each need a different one
	Advertise string `keys:"bucket_store.advertise" default:"where it listens; with the host's name if that is everywhere"`
}

// Compactor also has a schedule.
type Compactor struct {
	Service
	// between two walks over the parameter index and the checkpoint requests; `0s`: nothing is compacted
	// but [on demand](cli.md#compact)
	Interval time.Duration `keys:"compactor.interval" default:"'1h'"`
	// how many new ops make a bucket worth compacting, if they are a tenth of its ops
	MinChanges int `keys:"compactor.min_changes" default:"10"`
	// how long a bucket is left alone after it was compacted
	Rest time.Duration `keys:"compactor.rest" default:"'1m'"`
	// how many megabytes of history a compactor reads and rewrites a second at most; `0`: no bound
	MBPerSecond int `keys:"compactor.mb_per_second" default:"16"`
	// the share of the time that a compactor spends on it at most, for each of the two buckets that it has
	// at a time
	BusyPercent int `keys:"compactor.busy_percent" default:"10"`
	// how many megabytes of rows may be put again a day to make histories shorter
	// ([why](operations.md#compaction)); `0`: none
	DefragmentMB int `keys:"compactor.defragment_mb_per_day" default:"100"`
}

// Evaluator listens only privately.
type Evaluator struct{ MetricsPort int }

// Gateway serves clients.
type Gateway struct {
	MetricsPort int
	// for several gateways on one machine
	Port int `keys:"gateway.port" default:"'port'"`
	// streams of this gateway process; 0 is the default
	MaxStreams int `keys:"gateway.max_streams" default:"'api.parameters.max_concurrent_connections'"`
	// is before every path, as `/sync-service`: clients then use `https://host/sync-service` as their
	// endpoint
	PathPrefix string `keys:"gateway.path_prefix" default:"none"`
	// a file, relative to the config file, or the PEM text itself; the certificate's intermediates after
	// it. See [TLS](operations.md#tls)
	TLS    TLS `keys:"gateway.tls.certificate, gateway.tls.key" default:"none: no TLS"`
	Limits Limits
}

// Limits are of each user, and of each address that clients come from; 0 = none.
type Limits struct {
	// sync streams that one user, or one address, may have at once on one gateway; a WebSocket counts as
	// one, or as many as it carries
	UserStreams    int `keys:"gateway.limits.user_streams, gateway.limits.address_streams" default:"none"`
	AddressStreams int
	// requests in a minute; all may come at once. Those of a user are streams and write checkpoints, those
	// of an address are all but probes
	UserRequests    int `keys:"gateway.limits.user_requests, gateway.limits.address_requests" default:"none"`
	AddressRequests int
	// ranges and addresses, such as `[10.0.0.0/8]`, whose `X-Forwarded-For` is believed. See
	// [limits](operations.md#limits)
	Proxies []netip.Prefix `keys:"gateway.limits.trusted_proxies" default:"none"`
}

// URL is where the gateway is, seen from its own machine.
func (g *Gateway) URL(port int) string {
	scheme := "http"
	if g.TLS.On() {
		scheme = "https"
	}
	return fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, port, g.PathPrefix)
}

// TLS is what a server shows who it is with: both or neither.
type TLS struct {
	Certificate PEM // the chain, the server's own first
	Key         PEM
}

// On reports whether there is TLS.
func (t TLS) On() bool { return t.Certificate != PEM{} }

// Pair reads both.
func (t TLS) Pair() (certificate, key []byte, err error) {
	if certificate, err = t.Certificate.Read(); err != nil {
		return nil, nil, fmt.Errorf("read the certificate: %w", err)
	}
	if key, err = t.Key.Read(); err != nil {
		return nil, nil, fmt.Errorf("read the key: %w", err)
	}
	return certificate, key, nil
}

// DefaultIdentities is before the role in the URI of a service's certificate.
const DefaultIdentities = "spiffe://sluice/"

// ServicesTLS is TLS between the services and to NATS: all or none.
type ServicesTLS struct {
	Mutual // of every service, as far as it has none of its own
	// the same for one service, where all have the same file: `bucket_store`, `replicator`, `compactor`,
	// `rules_evaluator`, `gateway`, `nats`
	Own map[string]Mutual `keys:"tls.SERVICE.ca, .certificate, .key" default:"those of 'tls'"`
	// what stands before the role in a certificate's URI
	Identities string `keys:"tls.identities" default:"'spiffe://sluice/'"`
}

// On reports whether there is TLS between services: if so much as one file of it
// is named.
func (s ServicesTLS) On() bool { return s.Mutual != Mutual{} || len(s.Own) > 0 }

// Of is what the service called name shows.
func (s ServicesTLS) Of(name string) Mutual {
	m, own := s.Mutual, s.Own[name]
	if (own.CA != PEM{}) {
		m.CA = own.CA
	}
	if own.On() {
		m.TLS = own.TLS
	}
	return m
}

// Mutual is what a service shows others, and whom it trusts.
type Mutual struct {
	// the CA, or several one after the other, that the services' certificates are of. Each of these is a
	// file, relative to the config file, or the PEM text itself. See [TLS between
	// services](operations.md#tls-between-services)
	CA PEM `keys:"tls.ca" default:"none: no TLS between services"`
	// what the process shows the other services, and NATS
	TLS `keys:"tls.certificate, tls.key" default:"none"`
}

// PEM is given as text, or as the file that has it.
type PEM struct{ Text, Path string }

// Read returns the text.
func (p PEM) Read() ([]byte, error) {
	if p.Path == "" {
		return []byte(p.Text), nil
	}
	return os.ReadFile(p.Path)
}

// Ranges are addresses that must not be connected to.
type Ranges struct {
	Prefixes []netip.Prefix
	// Local rejects everything that is not public unicast.
	Local bool
}

// Rejects reports whether a must not be connected to.
func (r Ranges) Rejects(a netip.Addr) bool {
	a = a.Unmap()
	if r.Local && !public(a) {
		return true
	}
	for _, p := range r.Prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Empty reports whether nothing is rejected.
func (r Ranges) Empty() bool { return len(r.Prefixes) == 0 && !r.Local }

// special are ranges that are global unicast by their bits but not public.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.88.99.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("100::/64"), netip.MustParsePrefix("2001::/23"),
	netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"),
}

func public(a netip.Addr) bool {
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// DefaultSchema is the schema of tables that a sync config names without one,
// by the source's type.
func (f *File) DefaultSchema() string {
	if len(f.Connections) > 0 {
		switch c := &f.Connections[0]; {
		case c.MySQL != nil:
			return c.MySQL.Database
		case c.MSSQL != nil:
			return c.MSSQL.Schema
		case c.MongoDB != nil:
			return c.MongoDB.Database
		case c.Convex != nil:
			return "convex"
		}
	}
	return "public"
}

// SlotPrefix begins the names of replication streams.
func (f *File) SlotPrefix() string {
	if len(f.Connections) > 0 && f.Connections[0].Postgres != nil {
		return f.Connections[0].Postgres.SlotNamePrefix
	}
	return ""
}

// Strings is r as it is written in a config.
func (r Ranges) Strings() []string {
	var out []string
	if r.Local {
		out = append(out, "local")
	}
	for _, p := range r.Prefixes {
		out = append(out, p.String())
	}
	return out
}
