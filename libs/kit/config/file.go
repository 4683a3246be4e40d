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
	// Metadata are free labels.
	Metadata map[string]string
	// DisableAutoMigration leaves storage migrations to the operator.
	DisableAutoMigration bool
	Telemetry            Telemetry
	// Probes is nil if not configured: then there are those over HTTP only.
	Probes  *Probes
	Logging Logging
	// Parameters are scalars: string, bool, int64, float64 or nil.
	Parameters map[string]any
	Sluice     Sluice

	// Warnings are findings that do not keep the file from being used.
	Warnings []Problem
}

// SyncConfig says where the sync config is: in the file Path, or else in
// Content.
type SyncConfig struct {
	Path    string
	Content string
	// ExitOnError makes an invalid one an error at the start; default true.
	ExitOnError bool
}

// Connection is a source database; the field of its Type is set.
type Connection struct {
	Type     string // postgresql, mongodb, mysql, mssql, convex
	ID       string // default "default"
	Tag      string // default "default"
	DebugAPI bool

	Postgres *Postgres
	MongoDB  *MongoDB
	MySQL    *MySQL
	MSSQL    *MSSQL
	Convex   *Convex
}

// Postgres is a Postgres connection, of a source or of storage.
type Postgres struct {
	Hostname          string
	Port              int // 1024–65535; default 5432
	Username          string
	Password          string
	Database          string
	SSLMode           string // verify-full (default), verify-ca, disable
	CACert            string // PEM
	ClientCertificate string
	ClientPrivateKey  string
	TLSServerName     string
	Reject            Ranges
	SlotNamePrefix    string        // default powersync_
	MaxPoolSize       int           // default 8
	ConnectTimeout    time.Duration // 0 = the driver's
	// SnapshotSocketTimeout bounds the wait for the next rows of the initial
	// copy; default 30 s.
	SnapshotSocketTimeout time.Duration
	HeartbeatInterval     time.Duration // 5–60 s; 0 = not given, and about 1 s
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
	// Type is embedded (ours, the default), postgresql or mongodb.
	Type string
	// Path of the embedded store; "" = under the data folder.
	Path                  string
	MaxPoolSize           int // default 8
	DefaultStorageVersion int // default 2
	Postgres              *Postgres
	Schema                string // of postgresql; default sluice
	BatchLimits           BatchLimits
	MongoDB               *MongoDB
	BulkReadPreference    string  // default primary
	ClearThrottle         float64 // 0–20; default 0.2
}

// BatchLimits bound one storage transaction.
type BatchLimits struct {
	MaxEstimatedSize        int64 // default 5,000,000
	MaxRecordCount          int   // default 2,000
	MaxCurrentDataBatchSize int64 // default 50,000,000
}

// Auth is client_auth: whose tokens clients may show.
type Auth struct {
	Audience []string
	// JWKSURIs are http or https; what resolves into Reject is refused.
	JWKSURIs []string
	Reject   Ranges
	// BlockIPv6 comes with the deprecated block_local_jwks.
	BlockIPv6 bool
	Keys      []Key
	// Supabase adds Supabase's keys: SupabaseJWKS, derived from the source
	// connection ("" if it is not at Supabase), and SupabaseSecret.
	Supabase       bool
	SupabaseJWKS   string
	SupabaseSecret string
}

// Key is a static JSON web key.
type Key struct {
	Kty, Kid, Alg, Use string
	KeyOps             []string
	N, E               string // RSA
	K                  string // oct
	Crv, X, Y          string // OKP, EC
}

// API is the admin API's tokens and the limits of clients.
type API struct {
	// Tokens of the admin API; none = closed.
	Tokens []string
	// MaxConnections bounds the sync streams of a gateway process; default
	// 50,000 (the reference's default is 200: its processes cannot hold more).
	MaxConnections     int
	MaxDataFetch       int // default 10
	MaxBuckets         int // default 1,000
	MaxParameterResult int // default 1,000
	// CheckpointRequestRetention is how long requested write checkpoints are
	// kept; default 60 min.
	CheckpointRequestRetention time.Duration
	// BucketCountCacheTTL is how long cached bucket counts live; default 60 min.
	BucketCountCacheTTL time.Duration
}

// Telemetry is the metrics port; nothing is ever sent anywhere.
type Telemetry struct {
	PrometheusPort int // 0 = off
}

// Probes says which probes exist (spec/06 §7.2).
type Probes struct{ Filesystem, HTTP, Legacy bool }

// Logging is how to log.
type Logging struct {
	Level  string // silly, debug, verbose, http, info (default), warn, error
	Format string // json, text; "" = not configured
}

// Sluice is our own section. Each key can be overridden by the environment
// variable that its comment names.
type Sluice struct {
	NATSURL     string    // sluice.nats.url, SLUICE_NATS_URL; default nats://127.0.0.1:4222
	BucketStore Service   // SLUICE_BUCKET_STORE_*; default address 127.0.0.1:7441
	Replicator  Service   // SLUICE_REPLICATOR_*; default address 127.0.0.1:7442
	Compactor   Compactor // SLUICE_COMPACTOR_*; default address 127.0.0.1:7443
	Evaluator   Evaluator // SLUICE_RULES_EVALUATOR_*
	Gateway     Gateway   // SLUICE_GATEWAY_*
	// TLS is between the services and to NATS: sluice.tls, SLUICE_TLS_*.
	TLS ServicesTLS
	// AdminTokens may do what their scopes say: sluice.api.tokens.
	AdminTokens []AdminToken
	// Data is the data folder: sluice.data (relative to the config file) or
	// SLUICE_DATA; default sluice-data in the working directory.
	Data string
}

// AdminToken is a token of the admin API that may do only some of it; those of
// api.tokens may do everything.
type AdminToken struct {
	Name   string // what logs and deployments call it
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
	// MetricsPort is the private port with metrics, pprof and probes; 0 =
	// telemetry.prometheus_port.
	MetricsPort int
}

// Compactor also has a schedule.
type Compactor struct {
	Service
	// Interval between two runs, as "24h"; 0 = only on demand; default 24 h.
	Interval time.Duration
	// DefragmentMB is how many megabytes of rows may be put again a day; 0 = none;
	// default 100.
	DefragmentMB int
}

// Evaluator listens only privately.
type Evaluator struct{ MetricsPort int }

// Gateway serves clients.
type Gateway struct {
	MetricsPort int
	// Port replaces the top-level port, for several gateways on one machine.
	Port int
	// MaxStreams replaces api.parameters.max_concurrent_connections; 0 = that.
	MaxStreams int
	// PathPrefix is before every path, as /sync-service; "" = none.
	PathPrefix string
	TLS        TLS
	Limits     Limits
}

// Limits are of each user, and of each address that clients come from; 0 = none.
type Limits struct {
	UserStreams     int // sync streams at once
	AddressStreams  int
	UserRequests    int // in a minute
	AddressRequests int
	// Proxies are believed in X-Forwarded-For.
	Proxies []netip.Prefix
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
	// Own are by the service's name, as bucket-store.
	Own map[string]Mutual
	// Identities is before the role in a certificate's URI; default
	// DefaultIdentities.
	Identities string
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
	CA PEM // one or several, one after the other
	TLS
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
