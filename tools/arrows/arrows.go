// Command arrows checks which package of the workspace imports which.
//
// It reads every Go file below the folder given (default: the working
// directory) and fails on an import that the house plan does not allow:
//
//   - the arrows between our modules (allowed, below): TestArrows
//   - a database driver only where the database is: TestDrivers
//   - no clock, context, goroutine or I/O in model, rules and core: TestPure
//   - no package called util, common or helpers: TestNames
//
// The compiler guards internal/ by itself.
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const ours = "github.com/sluicesync/sluice/"

// allowed names, for each module, the packages of ours it may import besides
// its own; a name covers the packages below it.
var allowed = map[string][]string{
	"proto":                    {},
	"libs/model":               {},
	"libs/kit":                 {},
	"libs/rules":               {"libs/model"},
	"libs/core":                {"libs/model"},
	"libs/wire":                {"libs/model", "proto"},
	"services/replicator":      service(),
	"services/rules-evaluator": service("libs/rules"),
	"services/bucket-store":    service("libs/core/ledger"),
	"services/compactor":       service("libs/core/compact"),
	"services/sync-gateway":    service("libs/core/session", "libs/rules"),
	"services/sluice":          {"libs", "proto", "services"},
	"e2e":                      {"libs", "proto", "services"},
	"tools":                    {},
}

func service(besides ...string) []string {
	return append([]string{"libs/model", "libs/wire", "libs/kit", "proto"}, besides...)
}

// nobody lists the modules that nothing imports.
var nobody = []string{"services/sluice", "e2e", "tools"}

// drivers says where a database driver may be imported; tests and e2e may
// look into a database with any of them.
var drivers = map[string][]string{
	"github.com/cockroachdb/pebble":    {"services/bucket-store"},
	"github.com/jackc/pgx":             {"services/bucket-store", "services/replicator/internal/source"},
	"github.com/jackc/pglogrepl":       {"services/replicator/internal/source"},
	"github.com/jackc/pgconn":          {"services/replicator/internal/source"},
	"go.mongodb.org/mongo-driver":      {"services/bucket-store", "services/replicator/internal/source"},
	"github.com/go-mysql-org/go-mysql": {"services/replicator/internal/source"},
	"github.com/microsoft/go-mssqldb":  {"services/replicator/internal/source"},
	"modernc.org/sqlite":               {},
	"github.com/mattn/go-sqlite3":      {},
}

// offline are packages of pure modules that read files to check the others; a
// service may not import them.
var offline = []string{"libs/rules/conformance", "libs/rules/cmd"}

// pure are the modules that decide and do nothing.
var pure = []string{"libs/model", "libs/rules", "libs/core"}

var impureImports = []string{
	"context", "os", "os/exec", "os/signal", "net", "net/http", "database/sql", "io/fs", "log", "log/slog",
	"math/rand", "math/rand/v2", "crypto/rand", "syscall",
}

var impureCalls = map[string][]string{
	"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
}

var badNames = []string{"util", "utils", "common", "helper", "helpers"}

func main() {
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	found, files, err := check(root)
	if err != nil {
		fmt.Fprintln(os.Stderr, "arrows:", err)
		os.Exit(2)
	}
	for _, f := range found {
		fmt.Println(f)
	}
	if len(found) > 0 {
		os.Exit(1)
	}
	fmt.Printf("arrows: %d files, every import allowed\n", files)
}

// check returns what is wrong below root, sorted by file and line.
func check(root string) (found []string, files int, err error) {
	fset := token.NewFileSet()
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			base := d.Name()
			if base == "node_modules" || base == "testdata" || base == "bin" || (strings.HasPrefix(base, ".") && name != root) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		files++
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, p := range checkFile(filepath.ToSlash(rel), file) {
			found = append(found, fmt.Sprintf("%s:%d: %s", filepath.ToSlash(rel), fset.Position(p.pos).Line, p.text))
		}
		return nil
	})
	return found, files, err
}

type problem struct {
	pos  token.Pos
	text string
}

func checkFile(rel string, file *ast.File) []problem {
	var out []problem
	report := func(pos token.Pos, format string, args ...any) {
		out = append(out, problem{pos, fmt.Sprintf(format, args...)})
	}
	dir := path.Dir(rel)
	// A package called …test (storetest) is for tests as well.
	test := strings.HasSuffix(rel, "_test.go") || strings.HasSuffix(dir, "test")
	module := moduleOf(dir)
	if module == "" {
		report(file.Package, "%s is in no module of the house plan", dir)
		return out
	}
	if slices.Contains(badNames, strings.TrimSuffix(file.Name.Name, "_test")) {
		report(file.Package, "package %s: name it after what it is for", file.Name.Name)
	}
	isOffline := func(p string) bool {
		return slices.ContainsFunc(offline, func(o string) bool { return within(p, o) })
	}
	isPure := slices.Contains(pure, module) && !test && !isOffline(dir)
	for _, spec := range file.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the compiler reports it
		}
		if target, ok := strings.CutPrefix(name, ours); ok {
			switch {
			case isOffline(target) && !isOffline(dir) && !test && module != "e2e":
				report(spec.Pos(), "%s imports %s, which is for tests", dir, target)
			case within(target, module):
			case slices.Contains(nobody, moduleOf(target)):
				report(spec.Pos(), "%s imports %s: nothing imports that", module, target)
			case !slices.ContainsFunc(allowed[module], func(a string) bool { return within(target, a) }):
				report(spec.Pos(), "%s may not import %s", module, target)
			}
			continue
		}
		if module == "libs/model" && !test && strings.Contains(strings.SplitN(name, "/", 2)[0], ".") {
			report(spec.Pos(), "libs/model imports only the standard library, not %s", name)
		}
		if isPure && slices.Contains(impureImports, name) {
			report(spec.Pos(), "%s decides and does nothing: it may not import %s", module, name)
		}
		if !test && module != "e2e" && module != "tools" {
			for driver, places := range drivers {
				if within(name, driver) && !slices.ContainsFunc(places, func(p string) bool { return within(dir, p) }) {
					report(spec.Pos(), "%s may not be imported in %s, only in %s", driver, dir, strings.Join(places, " and "))
				}
			}
		}
	}
	if isPure {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				report(n.Pos(), "%s decides and does nothing: it may not start a goroutine", module)
			case *ast.SelectorExpr:
				if pkg, ok := n.X.(*ast.Ident); ok && slices.Contains(impureCalls[pkg.Name], n.Sel.Name) {
					report(n.Pos(), "%s has no clock: it may not use %s.%s", module, pkg.Name, n.Sel.Name)
				}
			}
			return true
		})
	}
	return out
}

// moduleOf returns the key of allowed that dir belongs to, or "".
func moduleOf(dir string) string {
	for module := range allowed {
		if within(dir, module) {
			return module
		}
	}
	return ""
}

// within says whether p is folder or below it; a major version suffix counts as below.
func within(p, folder string) bool {
	return p == folder || strings.HasPrefix(p, folder+"/")
}
