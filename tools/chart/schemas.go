// Command chart writes the JSON schemas that kubeconform checks the chart's
// output with: of Kubernetes itself, from its OpenAPI document, and of the
// objects of others that the chart makes, from their CRDs. All come as Go
// modules, at the versions below, and nothing else is fetched.
//
//	go run . schemas DIR    a file for each kind: deployment-apps-v1.json
//	go run . crds           the CRDs themselves, for a real API server
//
// The tests of this package are the policies that the chart's output must keep.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// kubernetes is the module whose OpenAPI document counts. Its requirements are
// of no concern, so it is downloaded and not required.
const kubernetes = "k8s.io/kubernetes@v1.33.13"

// crds are the definitions of the chart's objects that are not Kubernetes' own:
// module and file.
var crds = [][2]string{
	{"github.com/prometheus-operator/prometheus-operator@v0.85.0", "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"},
	{"github.com/prometheus-operator/prometheus-operator@v0.85.0", "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"},
	{"github.com/kedacore/keda/v2@v2.21.0", "config/crd/bases/keda.sh_scaledobjects.yaml"},
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	switch {
	case len(args) == 2 && args[0] == "schemas":
		return schemas(args[1])
	case len(args) == 1 && args[0] == "crds":
		for _, c := range crds {
			b, err := read(c[0], c[1])
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "---\n%s", b)
		}
		return nil
	}
	return errors.New("usage: chart schemas DIR | chart crds")
}

// object is a piece of JSON.
type object = map[string]any

func schemas(dir string) error {
	// Beside dir and then renamed: what is there is whole.
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := os.MkdirAll(part, 0o755); err != nil {
		return err
	}
	if err := ofKubernetes(part); err != nil {
		return err
	}
	for _, c := range crds {
		if err := ofCRD(part, c[0], c[1]); err != nil {
			return fmt.Errorf("%s: %w", c[1], err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

// read returns a file of a module.
func read(module, file string) ([]byte, error) {
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir = os.TempDir() // of no module of ours
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	var m struct{ Dir, Error string }
	if jerr := json.Unmarshal(out, &m); jerr != nil {
		return nil, fmt.Errorf("download %s: %w", module, errors.Join(err, jerr))
	}
	if m.Error != "" {
		return nil, fmt.Errorf("download %s: %s", module, m.Error)
	}
	return os.ReadFile(filepath.Join(m.Dir, file))
}

func ofKubernetes(dir string) error {
	b, err := read(kubernetes, "api/openapi-spec/swagger.json")
	if err != nil {
		return err
	}
	var doc struct{ Definitions map[string]object }
	if err := json.Unmarshal(b, &doc); err != nil {
		return fmt.Errorf("read OpenAPI document: %w", err)
	}
	for name, d := range doc.Definitions {
		strict(d)
		switch {
		case strings.HasSuffix(name, ".IntOrString"):
			doc.Definitions[name] = object{"type": []string{"string", "integer"}}
		case strings.HasSuffix(name, ".Quantity"):
			doc.Definitions[name] = object{"type": []string{"string", "number"}}
		}
	}
	for name, d := range doc.Definitions {
		kinds, _ := d["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) != 1 { // such as DeleteOptions, which is of all groups
			continue
		}
		k := kinds[0].(object)
		reached := object{}
		reach(doc.Definitions, d, reached)
		schema := object{"$ref": "#/definitions/" + name, "definitions": reached}
		reached[name] = d
		if err := write(dir, k["kind"].(string), k["group"].(string), k["version"].(string), schema); err != nil {
			return err
		}
	}
	return nil
}

// reach adds to found the definitions that d refers to.
func reach(all map[string]object, d any, found object) {
	switch d := d.(type) {
	case object:
		if ref, ok := d["$ref"].(string); ok {
			name := strings.TrimPrefix(ref, "#/definitions/")
			if _, ok := found[name]; !ok {
				found[name] = all[name]
				reach(all, all[name], found)
			}
		}
		for _, v := range d {
			reach(all, v, found)
		}
	case []any:
		for _, v := range d {
			reach(all, v, found)
		}
	}
}

// strict makes an object with properties have no others.
func strict(d any) {
	switch d := d.(type) {
	case object:
		if d["x-kubernetes-int-or-string"] == true {
			d["type"] = []string{"string", "integer"}
			delete(d, "anyOf")
		}
		if _, ok := d["properties"].(object); ok && d["x-kubernetes-preserve-unknown-fields"] != true {
			d["additionalProperties"] = false
		}
		for _, v := range d {
			strict(v)
		}
	case []any:
		for _, v := range d {
			strict(v)
		}
	}
}

func ofCRD(dir, module, file string) error {
	b, err := read(module, file)
	if err != nil {
		return err
	}
	var crd struct {
		Spec struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct{ OpenAPIV3Schema object }
			}
		}
	}
	if err := yaml.Unmarshal(b, &crd); err != nil {
		return err
	}
	for _, v := range crd.Spec.Versions {
		strict(v.Schema.OpenAPIV3Schema)
		if err := write(dir, crd.Spec.Names.Kind, crd.Spec.Group, v.Name, v.Schema.OpenAPIV3Schema); err != nil {
			return err
		}
	}
	return nil
}

// write writes a schema under the name that kubeconform's ResourceKind and
// KindSuffix make.
func write(dir, kind, group, version string, schema object) error {
	parts := []string{kind}
	if group, _, _ := strings.Cut(group, "."); group != "" {
		parts = append(parts, group)
	}
	b, err := json.Marshal(schema)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, strings.ToLower(strings.Join(append(parts, version), "-"))+".json"), b, 0o644)
}
