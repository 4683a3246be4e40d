package config

import (
	"math"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

const (
	defaultPort = 8080
	// defaultStreams is how many sync streams a gateway process takes unless
	// configured: far more than the reference's 200, because an idle stream
	// costs little here and memory is bounded otherwise.
	defaultStreams = 50_000
	unlimited      = math.MaxInt32
)

// file reads the whole config.
func (p *parser) file(v value, s source) *File {
	f := &File{Name: s.name, Dir: s.dir}
	if replication, ok := v.get("replication").section(); ok {
		connections := replication.get("connections").list()
		if len(connections) > 1 {
			connections[1].problem(errs.S9001, "Only a single replication data source is supported currently")
		}
		for _, c := range connections {
			if c, ok := c.section(); ok {
				f.Connections = append(f.Connections, connection(c))
			}
		}
	}
	f.Storage = storage(v.get("storage"), s.dir)
	f.Auth = auth(v.get("client_auth"), f.Connections)
	f.API = api(v.get("api"))
	f.Port = v.get("port").portOr(defaultPort, 0, errs.S9001)
	f.Sync = syncConfig(v, s)
	f.Metadata = map[string]string{}
	if m, ok := v.get("metadata").section(); ok {
		for _, e := range m.keys() {
			f.Metadata[strings.TrimPrefix(e.key, "metadata.")] = e.text()
		}
	}
	if m, ok := v.get("migrations").section(); ok {
		f.DisableAutoMigration = m.get("disable_auto_migration").boolOr(false)
	}
	if t, ok := v.get("telemetry").section(); ok {
		f.Telemetry.PrometheusPort = t.get("prometheus_port").portOr(0, 1, errs.S9001)
		t.get("disable_telemetry_sharing").boolOr(false)
		t.get("internal_service_endpoint").text()
	}
	if h, ok := v.get("healthcheck").section(); ok {
		if b, ok := h.get("probes").section(); ok {
			f.Probes = &Probes{
				Filesystem: b.get("use_filesystem").boolOr(false),
				HTTP:       b.get("use_http").boolOr(false),
				Legacy:     b.get("use_legacy").boolOr(false),
			}
		}
	}
	f.Logging = logging(v, p.env)
	if m, ok := v.get("parameters").section(); ok {
		f.Parameters = map[string]any{}
		for _, e := range m.keys() {
			if n := target(e.node); n == nil || isMap(n) || isList(n) {
				e.problem(errs.S9001, "must be text, a number, true, false or null")
				continue
			}
			var x any
			if err := target(e.node).Decode(&x); err != nil && !e.bad() {
				e.problem(errs.S9001, "must be text, a number, true, false or null")
			}
			f.Parameters[strings.TrimPrefix(e.key, "parameters.")] = x
		}
	}
	f.Sluice = ours(v.get("sluice"), p, s.dir)
	return f
}

func logging(v value, env func(string) (string, bool)) Logging {
	levels := []string{"silly", "debug", "verbose", "http", "info", "warn", "error"}
	l := Logging{Level: "info"}
	if s, ok := v.get("system").section(); ok {
		if g, ok := s.get("logging").section(); ok {
			l.Level = g.get("level").enum("info", levels...)
			l.Format = g.get("format").enum("", "json", "text")
		}
	}
	for name, set := range map[string]struct {
		to      *string
		allowed []string
	}{"PS_LOG_LEVEL": {&l.Level, levels}, "PS_LOG_FORMAT": {&l.Format, []string{"json", "text"}}} {
		if s, _ := env(name); s != "" {
			if !slices.Contains(set.allowed, s) {
				v.p.problems = append(v.p.problems, Problem{Key: name, Code: errs.S9001, Message: "must be one of " + strings.Join(set.allowed, ", ")})
				continue
			}
			*set.to = s
		}
	}
	return l
}

func syncConfig(v value, s source) *SyncConfig {
	current, old := v.get("sync_config"), v.get("sync_rules")
	if current.has() && old.has() {
		old.problem(errs.S9001, "sync_config and its former name sync_rules are both given")
	}
	if !current.has() {
		current = old
	}
	c := &SyncConfig{ExitOnError: true}
	m, ok := current.section()
	if ok {
		c.Path, c.Content = m.get("path").text(), m.get("content").text()
		c.ExitOnError = m.get("exit_on_error").boolOr(true)
	}
	switch {
	case s.sync != nil:
		c.Path, c.Content = "", *s.sync
	case c.Path != "":
		c.Content = ""
		if !filepath.IsAbs(c.Path) {
			c.Path = filepath.Join(s.dir, c.Path)
		}
	case c.Content == "":
		return nil
	}
	return c
}

func api(v value) API {
	a := API{MaxConnections: defaultStreams}
	v, _ = v.section()
	a.Tokens = v.get("tokens").texts()
	q, _ := v.get("parameters").section()
	n := func(key string, or int64) int { return int(q.get(key).intOr(or, 1, unlimited, errs.S9001)) }
	a.MaxConnections = n("max_concurrent_connections", defaultStreams)
	a.MaxDataFetch = n("max_data_fetch_concurrency", 10)
	a.MaxBuckets = n("max_buckets_per_connection", 1000)
	a.MaxParameterResult = n("max_parameter_query_results", 1000)
	a.CheckpointRequestRetention = time.Duration(n("checkpoint_request_retention_minutes", 60)) * time.Minute
	a.BucketCountCacheTTL = time.Duration(n("bucket_count_cache_ttl_minutes", 60)) * time.Minute
	return a
}

var supabaseHost = regexp.MustCompile(`^db\.([a-z0-9]+)\.supabase\.co$`)

func auth(v value, connections []Connection) Auth {
	var a Auth
	v, ok := v.section()
	if !ok {
		return a
	}
	for _, e := range v.get("audience").oneOrMore() {
		if s := e.text(); s != "" {
			a.Audience = append(a.Audience, s)
		}
	}
	a.Reject = v.get("jwks_reject_ip_ranges").ranges()
	if v.get("block_local_jwks").boolOr(false) {
		a.Reject.Local, a.BlockIPv6 = true, true
	}
	for _, e := range v.get("jwks_uri").oneOrMore() {
		s := e.text()
		if s == "" {
			continue
		}
		u, err := url.Parse(s)
		switch {
		case err != nil || u.Host == "":
			e.problem(errs.S3102, "not a URL")
		case u.Scheme != "http" && u.Scheme != "https":
			e.problem(errs.S3103, "only http and https are supported")
		default:
			if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
				if a.BlockIPv6 && ip.Is6() {
					e.problem(errs.S2202, "IPv6 addresses are not allowed for JWKS")
				} else if a.Reject.Rejects(ip) {
					e.problem(errs.S2203, "the address is in a rejected range")
				}
			}
			a.JWKSURIs = append(a.JWKSURIs, s)
		}
	}
	if jwks, ok := v.get("jwks").section(); ok {
		for _, e := range jwks.get("keys").list() {
			if e, ok := e.section(); ok {
				a.Keys = append(a.Keys, key(e))
			}
		}
	}
	a.Supabase = v.get("supabase").boolOr(false)
	a.SupabaseSecret = v.get("supabase_jwt_secret").text()
	if !a.Supabase && a.SupabaseSecret != "" {
		v.get("supabase_jwt_secret").warning("has no effect without supabase: true")
	}
	if a.Supabase {
		for _, c := range connections {
			if c.Postgres == nil {
				continue
			}
			if m := supabaseHost.FindStringSubmatch(c.Postgres.Hostname); m != nil {
				a.SupabaseJWKS = "https://" + m[1] + ".supabase.co/auth/v1/.well-known/jwks.json"
			}
		}
		if a.SupabaseJWKS == "" && a.SupabaseSecret == "" {
			v.get("supabase").warning("the source is not at db.<project>.supabase.co, so Supabase's keys cannot be found; set supabase_jwt_secret or jwks_uri")
		}
	}
	return a
}

func key(v value) Key {
	k := Key{
		Kty: v.get("kty").text(), Kid: v.get("kid").text(), Alg: v.get("alg").text(), Use: v.get("use").text(), KeyOps: v.get("key_ops").texts(),
		N: v.get("n").text(), E: v.get("e").text(), K: v.get("k").text(),
		Crv: v.get("crv").text(), X: v.get("x").text(), Y: v.get("y").text(),
	}
	need := func(names ...string) {
		for _, n := range names {
			if !v.get(n).has() {
				v.problem(errs.S2201, "a key of type %s needs %s", k.Kty, n)
			}
		}
	}
	alg := func(names ...string) {
		if k.Alg != "" && !slices.Contains(names, k.Alg) {
			v.get("alg").problem(errs.S2201, "a key of type %s has alg %s", k.Kty, strings.Join(names, ", "))
		}
	}
	curve := func(names ...string) {
		if k.Crv != "" && !slices.Contains(names, k.Crv) {
			v.get("crv").problem(errs.S2201, "must be one of %s", strings.Join(names, ", "))
		}
	}
	switch k.Kty {
	case "RSA":
		need("kid", "n", "e")
		alg("RS256", "RS384", "RS512")
	case "oct":
		need("alg", "k")
		alg("HS256", "HS384", "HS512")
	case "OKP":
		need("alg", "crv", "x")
		alg("EdDSA")
		curve("Ed25519", "Ed448")
	case "EC":
		need("crv", "x", "y")
		alg("ES256", "ES384", "ES512")
		curve("P-256", "P-384", "P-521")
	default:
		v.problem(errs.S2201, "kty must be one of RSA, oct, OKP, EC")
	}
	return k
}

func storage(v value, dir string) Storage {
	s := Storage{
		Type: "embedded", MaxPoolSize: 8, DefaultStorageVersion: 2, BulkReadPreference: "primary", ClearThrottle: 0.2,
		BatchLimits: BatchLimits{MaxEstimatedSize: 5_000_000, MaxRecordCount: 2000, MaxCurrentDataBatchSize: 50_000_000},
	}
	v, ok := v.section()
	if !ok {
		return s
	}
	s.Type = v.get("type").enum("embedded", "embedded", "pebble", "postgresql", "mongodb")
	if s.Type == "pebble" {
		s.Type = "embedded"
	}
	s.MaxPoolSize = int(v.get("max_pool_size").intOr(8, 1, unlimited, errs.S9001))
	s.DefaultStorageVersion = int(v.get("default_storage_version").intOr(2, 1, unlimited, errs.S9001))
	switch s.Type {
	case "embedded":
		if s.Path = v.get("path").text(); s.Path != "" && !filepath.IsAbs(s.Path) {
			s.Path = filepath.Join(dir, s.Path)
		}
	case "postgresql":
		s.Postgres = postgres(v)
		// Longer ones are cut by the server, these are refused by it.
		if s.Schema = v.get("schema").textOr("sluice"); len(s.Schema) > 63 || strings.HasPrefix(s.Schema, "pg_") || strings.Contains(s.Schema, "\x00") {
			v.get("schema").problem(errs.S3201, "must have at most 63 bytes, and not begin with pg_")
		}
		if b, ok := v.get("batch_limits").section(); ok {
			s.BatchLimits.MaxEstimatedSize = b.get("max_estimated_size").intOr(5_000_000, 1, unlimited, errs.S3201)
			s.BatchLimits.MaxRecordCount = int(b.get("max_record_count").intOr(2000, 1, unlimited, errs.S3201))
			s.BatchLimits.MaxCurrentDataBatchSize = b.get("max_current_data_batch_size").intOr(50_000_000, 1, unlimited, errs.S3201)
		}
	case "mongodb":
		s.MongoDB = mongodb(v)
		s.BulkReadPreference = v.get("bulk_read_preference").enum("primary", "primary", "primaryPreferred", "secondary", "secondaryPreferred", "nearest")
		if s.ClearThrottle = v.get("clear_batch_throttle_rate").floatOr(0.2); !(s.ClearThrottle >= 0 && s.ClearThrottle <= 20) {
			v.get("clear_batch_throttle_rate").problem(errs.S3201, "must be from 0 to 20")
		}
	}
	return s
}

func connection(v value) Connection {
	c := Connection{
		Type: v.get("type").text(), ID: v.get("id").textOr("default"), Tag: v.get("tag").textOr("default"),
		DebugAPI: v.get("debug_api").boolOr(false),
	}
	switch c.Type {
	case "postgresql":
		c.Postgres = postgres(v)
	case "mongodb":
		c.MongoDB = mongodb(v)
	case "mysql":
		c.MySQL = mysql(v)
	case "mssql":
		c.MSSQL = mssql(v)
	case "convex":
		c.Convex = convex(v)
	case "":
		if !v.get("type").bad() {
			v.problem(errs.S9001, "type is missing; there are postgresql, mongodb, mysql, mssql, convex")
		}
	default:
		v.get("type").problem(errs.S9001, "must be one of postgresql, mongodb, mysql, mssql, convex")
	}
	return c
}

// host is what connections to SQL databases have in common.
type host struct {
	hostname, username, password, database string
	port                                   int
	query                                  url.Values
}

// sqlHost reads uri and the single keys, which win over it.
func sqlHost(v value, port, minPort int, schemes ...string) host {
	h := host{port: port, query: url.Values{}}
	if e := v.get("uri"); e.has() {
		s := e.text()
		u, err := url.Parse(s)
		switch {
		case s == "":
		case err != nil:
			e.problem(errs.S1109, "not a URI")
		case !slices.Contains(schemes, u.Scheme):
			e.problem(errs.S1109, "the URI must begin with %s:", strings.Join(schemes, ": or "))
		default:
			h.hostname, h.username, h.database = u.Hostname(), u.User.Username(), strings.TrimPrefix(u.Path, "/")
			h.password, _ = u.User.Password()
			h.query = u.Query()
			if n := u.Port(); n != "" {
				p, err := strconv.Atoi(n)
				if err != nil || p < minPort || p > 65535 {
					e.problem(errs.S1110, "the URI's port must be from %d to 65535", minPort)
				} else {
					h.port = p
				}
			}
		}
	}
	h.hostname = v.get("hostname").textOr(h.hostname)
	h.port = v.get("port").portOr(h.port, minPort, errs.S1110)
	h.username = v.get("username").textOr(h.username)
	h.password = v.get("password").textOr(h.password)
	h.database = v.get("database").textOr(h.database)
	return h
}

// complete reports what a connection lacks.
func (h host) complete(v value, needPassword bool) {
	for _, m := range []struct {
		key, is string
		code    errs.Code
		need    bool
	}{
		{"hostname", h.hostname, errs.S1106, true},
		{"username", h.username, errs.S1107, needPassword},
		{"password", h.password, errs.S1108, needPassword},
		{"database", h.database, errs.S1105, true},
	} {
		if m.need && m.is == "" && !v.get(m.key).bad() && !v.get("uri").bad() {
			v.problem(m.code, "%s is missing", m.key)
		}
	}
}

// literal reports a host that is an address in a rejected range.
func (h host) literal(v value, r Ranges) {
	if ip, err := netip.ParseAddr(h.hostname); err == nil && r.Rejects(ip) {
		e := v.get("hostname")
		if !e.has() {
			e = v.get("uri")
		}
		e.problem(errs.S2203, "the address is in a rejected range")
	}
}

func heartbeat(v value) time.Duration {
	if v = v.get("heartbeat_interval_seconds"); !v.has() {
		return 0
	}
	return v.in(time.Second, 0, 5, 60)
}

func postgres(v value) *Postgres {
	h := sqlHost(v, 5432, 1024, "postgresql", "postgres")
	h.complete(v, true)
	c := &Postgres{
		Hostname: h.hostname, Port: h.port, Username: h.username, Password: h.password, Database: h.database,
		SSLMode: v.get("sslmode").enum("verify-full", "verify-full", "verify-ca", "disable"),
		CACert:  v.get("cacert").text(), ClientCertificate: v.get("client_certificate").text(), ClientPrivateKey: v.get("client_private_key").text(),
		TLSServerName:         v.get("tls_servername").text(),
		Reject:                v.get("reject_ip_ranges").ranges(),
		SlotNamePrefix:        v.get("slot_name_prefix").textOr("powersync_"),
		MaxPoolSize:           int(v.get("max_pool_size").intOr(8, 1, unlimited, errs.S9001)),
		SnapshotSocketTimeout: v.get("snapshot_socket_timeout").in(time.Second, 30, 1, unlimited),
		HeartbeatInterval:     heartbeat(v),
	}
	h.literal(v, c.Reject)
	if c.SSLMode == "verify-ca" && c.CACert == "" && !v.get("cacert").bad() {
		v.get("sslmode").problem(errs.S1104, "sslmode verify-ca needs cacert")
	}
	c.ConnectTimeout = v.get("connect_timeout").in(time.Second, positive(h.query.Get("connect_timeout")), 0, unlimited)
	return c
}

// positive is the number in s, or 0: bad URI options are ignored.
func positive(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

func mongodb(v value) *MongoDB {
	c := &MongoDB{
		URI: v.get("uri").text(), Database: v.get("database").text(),
		Username: v.get("username").text(), Password: v.get("password").text(),
		PostImages:        v.get("post_images").enum("off", "off", "auto_configure", "read_only"),
		Reject:            v.get("reject_ip_ranges").ranges(),
		MaxPoolSize:       int(v.get("max_pool_size").intOr(0, 0, unlimited, errs.S9001)),
		HeartbeatInterval: heartbeat(v),
	}
	if c.URI == "" {
		if e := v.get("uri"); !e.bad() && (!e.has() || e.node.ShortTag() == "!!str") {
			v.problem(errs.S1109, "uri is missing")
		}
		return c
	}
	rest, ok := strings.CutPrefix(c.URI, "mongodb://")
	if !ok {
		rest, ok = strings.CutPrefix(c.URI, "mongodb+srv://")
	}
	if !ok {
		v.get("uri").problem(errs.S1109, "the URI must begin with mongodb: or mongodb+srv:")
		return c
	}
	// Several hosts with ports are no URL that net/url reads: take it apart here.
	rest, _, _ = strings.Cut(rest, "?")
	rest = rest[strings.LastIndex(rest, "@")+1:]
	hosts, database, _ := strings.Cut(rest, "/")
	if c.Database == "" {
		c.Database = database
	}
	if hosts == "" {
		v.get("uri").problem(errs.S1106, "hostname is missing")
	}
	for _, h := range strings.Split(hosts, ",") {
		name := h
		if a, err := netip.ParseAddrPort(h); err == nil {
			name = a.Addr().String()
		}
		if ip, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil && c.Reject.Rejects(ip) {
			v.get("uri").problem(errs.S2203, "the address is in a rejected range")
		}
	}
	if c.Database == "" {
		v.problem(errs.S1105, "database is missing")
	}
	return c
}

func mysql(v value) *MySQL {
	h := sqlHost(v, 3306, 1, "mysql")
	h.complete(v, true)
	c := &MySQL{
		Hostname: h.hostname, Port: h.port, Username: h.username, Password: h.password, Database: h.database,
		ServerID: uint32(v.get("server_id").intOr(1, 1, math.MaxUint32, errs.S9001)),
		CACert:   v.get("cacert").text(), ClientCertificate: v.get("client_certificate").text(), ClientPrivateKey: v.get("client_private_key").text(),
		Reject:           v.get("reject_ip_ranges").ranges(),
		BinlogQueueBytes: v.get("binlog_queue_memory_limit").intOr(50, 1, unlimited, errs.S9001) << 20,
		ConnectTimeout:   time.Duration(positive(h.query.Get("connectTimeout"))) * time.Millisecond,
		ConnectionLimit:  int(positive(h.query.Get("connectionLimit"))),
		QueueLimit:       int(positive(h.query.Get("queueLimit"))),
	}
	h.literal(v, c.Reject)
	return c
}

func mssql(v value) *MSSQL {
	h := sqlHost(v, 1433, 1, "mssql")
	c := &MSSQL{
		Schema: v.get("schema").textOr("dbo"), CACert: v.get("cacert").text(), TLSServerName: v.get("tls_servername").text(),
		Reject: v.get("reject_ip_ranges").ranges(), HeartbeatInterval: heartbeat(v),
	}
	if a, ok := v.get("authentication").section(); ok {
		o, _ := a.get("options").section()
		switch a.get("type").enum("default", "default", "azure-active-directory-service-principal-secret") {
		case "default":
			h.username, h.password = o.get("userName").textOr(h.username), o.get("password").textOr(h.password)
		default:
			c.Azure = &AzurePrincipal{ClientID: o.get("clientId").text(), ClientSecret: o.get("clientSecret").text(), TenantID: o.get("tenantId").text()}
			for _, k := range []string{"clientId", "clientSecret", "tenantId"} {
				if e := o.get(k); !e.has() && !e.bad() {
					a.problem(errs.S1109, "options.%s is missing", k)
				}
			}
		}
	}
	h.complete(v, c.Azure == nil)
	c.Hostname, c.Port, c.Username, c.Password, c.Database = h.hostname, h.port, h.username, h.password, h.database
	m, _ := v.get("additionalConfig").section()
	c.PollingInterval = m.get("pollingIntervalMs").in(time.Millisecond, 1000, 1, unlimited)
	c.PollingBatchSize = int(m.get("pollingBatchSize").intOr(10, 1, unlimited, errs.S9001))
	c.TrustServerCertificate = m.get("trustServerCertificate").boolOr(false)
	if c.TrustServerCertificate && c.CACert != "" {
		v.get("cacert").problem(errs.S1604, "cacert and trustServerCertificate exclude each other")
	}
	h.literal(v, c.Reject)
	return c
}

func convex(v value) *Convex {
	c := &Convex{
		DeploymentURL: v.get("deployment_url").text(), DeployKey: v.get("deploy_key").text(),
		PollingInterval: v.get("polling_interval_ms").in(time.Millisecond, 1000, 1, unlimited),
		RequestTimeout:  v.get("request_timeout_ms").in(time.Millisecond, 60_000, 1, unlimited),
		Reject:          v.get("reject_ip_ranges").ranges(),
	}
	e := v.get("deployment_url")
	switch u, err := url.Parse(c.DeploymentURL); {
	case c.DeploymentURL == "":
		if !e.has() {
			v.problem(errs.S1109, "deployment_url is missing")
		}
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		e.problem(errs.S1109, "must be an http or https URL")
	default:
		host{hostname: u.Hostname()}.literal(v, c.Reject)
	}
	if c.DeployKey == "" && !v.get("deploy_key").has() {
		v.problem(errs.S1109, "deploy_key is missing")
	}
	return c
}
