package config

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// configs have, one after the other, everything on whose account a key is looked
// for.
var configs = []string{
	"replication: {connections: [{type: postgresql}]}\nstorage: {type: embedded}\n",
	"replication: {connections: [{type: mongodb}]}\nstorage: {type: postgresql, batch_limits: {}}\n",
	"replication: {connections: [{type: mysql}]}\nstorage: {type: mongodb}\n",
	"replication: {connections: [{type: mssql, authentication: {}, additionalConfig: {}}]}\n",
	"replication: {connections: [{type: mssql, authentication: {type: azure-active-directory-service-principal-secret, options: {}}}]}\n",
	"replication: {connections: [{type: convex}]}\n",
	"client_auth: {jwks: {keys: [{kty: oct}]}}\nmigrations: {}\ntelemetry: {}\nhealthcheck: {probes: {}}\nsystem: {logging: {}}\nsync_config: {}\n",
	"sluice: {api: {tokens: [{}]}}\n",
}

var (
	index   = regexp.MustCompile(`\[\d+\]`)
	heading = regexp.MustCompile("^##+ (.*)")
	quoted  = regexp.MustCompile("`([^`]+)`")
)

// asked returns the keys that are looked for, and apart those that others are
// within.
func asked(t *testing.T) (keys, within map[string]bool) {
	t.Helper()
	keys, within = map[string]bool{}, map[string]bool{}
	for _, text := range configs {
		s := source{name: "test.yaml", dir: "/", text: []byte(text), env: environment()}
		root, problem := s.tree()
		if problem != nil {
			t.Fatalf("%s: %+v", text, problem)
		}
		p := &parser{env: s.env, asked: func(key string) { keys[index.ReplaceAllString(key, "")] = true }}
		p.file(value{p: p, node: root}, s) // what is wrong with it is none of ours
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		for i := range key {
			if key[i] == '.' {
				delete(keys, key[:i])
				within[key[:i]] = true
			}
		}
	}
	for old := range maps.Clone(keys) { // sync_rules is the former name of it all
		if strings.HasPrefix(old, "sync_rules") {
			delete(keys, old)
		}
	}
	return keys, within
}

// documented returns the keys of the page: the first cells of its tables, each
// below the key that the heading begins with. SERVICE stands for each of the names
// in the last cell.
func documented(t *testing.T) map[string]bool {
	t.Helper()
	b, err := os.ReadFile("../../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, ok := strings.Cut(string(b), "\n## Keys of the reference server\n")
	if !ok {
		t.Fatal("docs/configuration.md has no keys")
	}
	keys := map[string]bool{}
	section := ""
	for line := range strings.Lines(page) {
		if m := heading.FindStringSubmatch(line); m != nil {
			section = ""
			if names := quoted.FindAllStringSubmatch(m[1], -1); names != nil && strings.HasPrefix(m[1], "`") && !strings.Contains(m[1], "`, `") {
				section = strings.TrimSuffix(names[0][1], ":")
			}
			if section == "port" { // has no table
				keys[section] = true
			}
			continue
		}
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		last := ""
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			name := m[1]
			switch rest, same := strings.CutSuffix(name, ".…"); {
			case same: // as the one before, in another section
				name = rest + last[strings.Index(last, "."):]
			case name[0] == '.': // beside the one before
				name = last[:strings.LastIndex(last, ".")] + name
			}
			last = name
			if !strings.Contains(name, "SERVICE") {
				keys[join(section, name)] = true
				continue
			}
			for _, service := range quoted.FindAllStringSubmatch(cells[len(cells)-2], -1) {
				keys[join(section, strings.Replace(name, "SERVICE", service[1], 1))] = true
			}
		}
	}
	return keys
}

// TestDocumented: every key that is read is in docs/configuration.md, and every
// key in there is read.
func TestDocumented(t *testing.T) {
	read, within := asked(t)
	page := documented(t)
	for _, key := range slices.Sorted(maps.Keys(read)) {
		if !page[key] {
			t.Errorf("%s is read and not documented", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(page)) {
		if !read[key] && !within[key] {
			t.Errorf("%s is documented and not read", key)
		}
	}
	if len(read) < 100 {
		t.Errorf("only %d keys are read", len(read))
	}
	// What a warning calls known is what is read.
	for section, names := range known {
		for _, name := range names {
			key := strings.ReplaceAll(section, "[]", "") + "." + name
			if !read[key] && !within[key] {
				t.Errorf("%s is known and not read", key)
			}
		}
	}
}
