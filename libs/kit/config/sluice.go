package config

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// known are the keys of our section, by the section they are in.
var known = map[string][]string{
	"sluice":                 {"nats", "bucket_store", "replicator", "compactor", "rules_evaluator", "gateway", "tls", "data", "api"},
	"sluice.api":             {"tokens"},
	"sluice.api.tokens[]":    {"name", "token", "scopes"},
	"sluice.nats":            {"url"},
	"sluice.bucket_store":    {"address", "advertise", "metrics_port"},
	"sluice.replicator":      {"address", "metrics_port"},
	"sluice.compactor":       {"address", "metrics_port", "interval", "min_changes", "rest", "mb_per_second", "busy_percent", "defragment_mb_per_day"},
	"sluice.rules_evaluator": {"metrics_port"},
	"sluice.gateway":         {"metrics_port", "port", "max_streams", "path_prefix", "tls", "limits"},
	"sluice.gateway.limits":  {"user_streams", "address_streams", "user_requests", "address_requests", "trusted_proxies"},
	"sluice.gateway.tls":     {"certificate", "key"},
	"sluice.tls": {"ca", "certificate", "key", "identities",
		"bucket_store", "replicator", "compactor", "rules_evaluator", "gateway", "nats"},
	"sluice.tls.bucket_store":    ownTLS,
	"sluice.tls.replicator":      ownTLS,
	"sluice.tls.compactor":       ownTLS,
	"sluice.tls.rules_evaluator": ownTLS,
	"sluice.tls.gateway":         ownTLS,
	"sluice.tls.nats":            ownTLS,
}

var ownTLS = []string{"ca", "certificate", "key"}

// sections are the names that services have in our section, after those that they
// have as processes.
var sections = [][2]string{
	{"bucket-store", "bucket_store"}, {"replicator", "replicator"}, {"compactor", "compactor"}, {"rules-evaluator", "rules_evaluator"},
	{"sync-gateway", "gateway"}, {"nats", "nats"},
}

// ours reads our section and its environment variables.
func ours(v value, p *parser, dir string) Sluice {
	v, _ = v.section()
	warnUnknown(v)
	o := overridden{v: v, p: p}
	data := o.text("data", "sluice-data")
	if _, _, ok := o.env("data"); !ok && o.get("data").has() && !filepath.IsAbs(data) {
		data = filepath.Join(dir, data) // a path in the file starts where the file is
	}
	return Sluice{
		NATSURL: o.text("nats.url", "nats://127.0.0.1:4222"),
		BucketStore: BucketStore{
			Service:   o.service("bucket_store", "127.0.0.1:7441"),
			Advertise: o.address("bucket_store.advertise", ""),
		},
		Replicator: o.service("replicator", "127.0.0.1:7442"),
		Compactor: Compactor{
			Service:      o.service("compactor", "127.0.0.1:7443"),
			Interval:     o.interval("compactor.interval", time.Hour),
			MinChanges:   o.number("compactor.min_changes", 10),
			Rest:         o.interval("compactor.rest", time.Minute),
			MBPerSecond:  o.number("compactor.mb_per_second", 16),
			BusyPercent:  o.percent("compactor.busy_percent", 10),
			DefragmentMB: o.number("compactor.defragment_mb_per_day", 100),
		},
		Evaluator: Evaluator{MetricsPort: o.port("rules_evaluator.metrics_port")},
		Gateway: Gateway{
			MetricsPort: o.port("gateway.metrics_port"),
			Port:        o.port("gateway.port"),
			MaxStreams:  o.count("gateway.max_streams"),
			PathPrefix:  o.prefix("gateway.path_prefix"),
			TLS:         o.tls("gateway.tls", dir),
			Limits: Limits{
				UserStreams: o.count("gateway.limits.user_streams"), AddressStreams: o.count("gateway.limits.address_streams"),
				UserRequests: o.count("gateway.limits.user_requests"), AddressRequests: o.count("gateway.limits.address_requests"),
				Proxies: o.networks("gateway.limits.trusted_proxies"),
			},
		},
		AdminTokens: adminTokens(o.get("api.tokens")),
		TLS:         o.servicesTLS(dir),
		Data:        filepath.Clean(data),
	}
}

var tokenName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// minToken is the least length of a token: what is shorter can be guessed.
const minToken = 16

// adminTokens reads the tokens that may do a part of what api.tokens may.
func adminTokens(v value) []AdminToken {
	var out []AdminToken
	names, secrets := map[string]bool{}, map[string]bool{}
	for _, e := range v.list() {
		e, ok := e.section()
		if !ok {
			continue
		}
		t := AdminToken{Name: e.get("name").text(), Token: e.get("token").text()}
		switch {
		case e.get("name").bad():
		case !tokenName.MatchString(t.Name):
			e.problem(errs.S9001, "name must be given, of letters, digits, '.', '_' and '-': logs name the token by it")
		case names[t.Name]:
			e.problem(errs.S9001, "name is that of another token")
		}
		switch {
		case e.get("token").bad():
		case len(t.Token) < minToken:
			e.problem(errs.S9001, "token must have at least %d characters", minToken)
		case secrets[t.Token]:
			e.problem(errs.S9001, "token is another one, too")
		}
		names[t.Name], secrets[t.Token] = true, true
		scopes := e.get("scopes").list()
		for _, s := range scopes {
			if scope := s.enum("", string(ScopeRead), string(ScopeDeploy), string(ScopeCompact)); scope != "" {
				t.Scopes = append(t.Scopes, Scope(scope))
			}
		}
		if len(scopes) == 0 {
			e.problem(errs.S9001, "scopes must name at least one of read, deploy, compact")
		}
		out = append(out, t)
	}
	return out
}

// listItem is the end of a key that stands for one item of a list.
var listItem = regexp.MustCompile(`\[\d+\]$`)

func warnUnknown(v value) {
	keys, ok := known[listItem.ReplaceAllString(v.key, "[]")]
	if !ok {
		return
	}
	for _, e := range v.keys() {
		name := e.key[strings.LastIndex(e.key, ".")+1:]
		best, distance := "", len(name)
		found := false
		for _, k := range keys {
			if k == name {
				found = true
				break
			}
			if d := edits(name, k); d < distance {
				best, distance = k, d
			}
		}
		switch {
		case found:
			warnUnknown(e)
			if n := target(e.node); n != nil && n.Kind == yaml.SequenceNode {
				for _, item := range e.list() {
					warnUnknown(item)
				}
			}
		case distance <= 3:
			e.warning("unknown key; is it %s?", best)
		default:
			e.warning("unknown key; there are %s", strings.Join(keys, ", "))
		}
	}
}

// edits is the Levenshtein distance of a and b.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := corner
			if a[i] != b[j] {
				cost++
			}
			corner = row[j+1]
			row[j+1] = min(cost, row[j]+1, corner+1)
		}
	}
	return row[len(b)]
}

// overridden reads keys of our section that environment variables replace.
type overridden struct {
	v value
	p *parser
}

// env returns the variable for a key: SLUICE_COMPACTOR_INTERVAL for
// compactor.interval.
func (o overridden) env(key string) (text, name string, ok bool) {
	name = "SLUICE_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
	text, _ = o.p.env(name)
	return text, name, text != ""
}

func (o overridden) get(key string) value {
	v := o.v
	for part := range strings.SplitSeq(key, ".") {
		v = v.get(part)
		if n := target(v.node); n != nil && part != key[strings.LastIndex(key, ".")+1:] {
			v, _ = v.section()
		}
	}
	return v
}

// problem reports the value of key where it was given: in the environment or
// in the file.
func (o overridden) problem(key, message string) {
	if _, name, ok := o.env(key); ok {
		o.p.problems = append(o.p.problems, Problem{Key: name, Code: errs.S9001, Message: message})
		return
	}
	o.get(key).problem(errs.S9001, "%s", message)
}

func (o overridden) text(key, or string) string {
	if s, _, ok := o.env(key); ok {
		return s
	}
	return o.get(key).textOr(or)
}

func (o overridden) service(name, address string) Service {
	return Service{Address: o.address(name+".address", address), MetricsPort: o.port(name + ".metrics_port")}
}

// address is host:port; of bucket-stores there may be several.
func (o overridden) address(key, or string) string {
	s := o.text(key, or)
	each := []string{s}
	if key == "bucket_store.address" {
		each = strings.Split(s, ",")
	}
	for _, one := range each {
		if _, _, err := net.SplitHostPort(strings.TrimSpace(one)); err != nil && s != "" {
			o.problem(key, "must be host:port")
			return s
		}
	}
	return s
}

func (o overridden) port(key string) int {
	if s, _, ok := o.env(key); ok {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > 65535 {
			o.problem(key, "must be a port from 0 to 65535")
			return 0
		}
		return n
	}
	return o.get(key).portOr(0, 0, errs.S9001)
}

func (o overridden) count(key string) int {
	if s, _, ok := o.env(key); ok {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 1 {
			o.problem(key, "must be a whole number of at least 1")
			return 0
		}
		return int(n)
	}
	v := o.get(key)
	if !v.has() {
		return 0
	}
	return int(v.intOr(0, 1, unlimited, errs.S9001))
}

// number is a whole number of at least 0.
func (o overridden) number(key string, or int) int {
	if s, _, ok := o.env(key); ok {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 0 {
			o.problem(key, "must be a whole number of at least 0")
			return or
		}
		return int(n)
	}
	return int(o.get(key).intOr(int64(or), 0, unlimited, errs.S9001))
}

// percent is a whole number from 1 to 100.
func (o overridden) percent(key string, or int) int {
	n := o.number(key, or)
	if n < 1 || n > 100 {
		o.problem(key, "must be a whole number from 1 to 100")
		return or
	}
	return n
}

func (o overridden) interval(key string, or time.Duration) time.Duration {
	s := o.text(key, "")
	if s == "" {
		return or
	}
	d, err := time.ParseDuration(s)
	if err == nil && d >= 0 {
		return d
	}
	o.problem(key, "must be a duration like 90s, 30m or 24h, or 0s for none")
	return or
}

// networks is a list of ranges and addresses; in the environment with commas.
func (o overridden) networks(key string) []netip.Prefix {
	var texts []string
	if s, _, ok := o.env(key); ok {
		texts = strings.Split(s, ",")
	} else {
		texts = o.get(key).texts()
	}
	var out []netip.Prefix
	for _, s := range texts {
		s = strings.TrimSpace(s)
		p, err := netip.ParsePrefix(s)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(s); err == nil {
				p, err = a.Prefix(a.BitLen())
			}
		}
		if err != nil {
			o.problem(key, "must be ranges like 10.0.0.0/8, or addresses")
			return nil
		}
		out = append(out, p.Masked())
	}
	return out
}

// prefix is a path as /sync-service.
func (o overridden) prefix(key string) string {
	s := o.text(key, "")
	if s == "" || s == "/" {
		return ""
	}
	if u, err := url.Parse(s); err != nil || u.Path != s || path.Clean(s) != s || s[0] != '/' {
		o.problem(key, "must be a path like /sync-service, with no slash at its end")
		return ""
	}
	return s
}

// tls reads a certificate and its key. Files are not looked at: other services
// read the same config, and the files are none of theirs.
func (o overridden) tls(key, dir string) TLS {
	t := TLS{o.pem(key+".certificate", dir), o.pem(key+".key", dir)}
	switch {
	case (t.Certificate == PEM{}) != (t.Key == PEM{}):
		given := key + ".certificate"
		if (t.Certificate == PEM{}) {
			given = key + ".key"
		}
		if !o.get(key+".certificate").bad() && !o.get(key+".key").bad() {
			o.problem(given, "certificate and key must be given together")
		}
		return TLS{}
	case t.Certificate.Text != "" && t.Key.Text != "":
		if _, err := tls.X509KeyPair([]byte(t.Certificate.Text), []byte(t.Key.Text)); err != nil {
			o.problem(key+".certificate", "cannot be used with the key: "+err.Error())
		}
	}
	return t
}

// servicesTLS reads what is between services. Files are not looked at, as in tls,
// and each service finds by itself what it lacks.
func (o overridden) servicesTLS(dir string) ServicesTLS {
	s := ServicesTLS{Mutual: o.mutual("tls", dir), Identities: o.text("tls.identities", DefaultIdentities), Own: map[string]Mutual{}}
	if u, err := url.Parse(s.Identities); err != nil || u.Scheme != "spiffe" || u.Host == "" || u.String() != s.Identities || !strings.HasSuffix(s.Identities, "/") {
		o.problem("tls.identities", "must be like "+DefaultIdentities+", with a slash at its end")
	}
	for _, names := range sections {
		if m := o.mutual("tls."+names[1], dir); m != (Mutual{}) {
			s.Own[names[0]] = m
		}
	}
	return s
}

func (o overridden) mutual(key, dir string) Mutual {
	m := Mutual{CA: o.pem(key+".ca", dir), TLS: o.tls(key, dir)}
	if m.CA.Text != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(m.CA.Text)) {
		o.problem(key+".ca", "has no certificate in it")
	}
	return m
}

// pem is PEM text, or a path: in the file it starts where the file is.
func (o overridden) pem(key, dir string) PEM {
	s := o.text(key, "")
	switch _, _, env := o.env(key); {
	case s == "":
		return PEM{}
	case strings.Contains(s, "-----BEGIN"):
		return PEM{Text: s}
	case env || filepath.IsAbs(s):
		return PEM{Path: s}
	}
	return PEM{Path: filepath.Join(dir, s)}
}
