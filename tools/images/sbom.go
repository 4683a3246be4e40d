package main

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// rootStore is the module that has Mozilla's certificates.
const rootStore = "golang.org/x/crypto/x509roots/fallback"

// What follows is the part of SPDX 2.3 that is used.
type spdx struct {
	Version       string         `json:"spdxVersion"`
	License       string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Creation      spdxCreation   `json:"creationInfo"`
	Packages      []spdxPackage  `json:"packages"`
	Relationships []spdxRelation `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID        string         `json:"SPDXID"`
	Name      string         `json:"name"`
	Version   string         `json:"versionInfo,omitempty"`
	Download  string         `json:"downloadLocation"`
	Analyzed  bool           `json:"filesAnalyzed"`
	Purpose   string         `json:"primaryPackagePurpose,omitempty"`
	Checksums []spdxChecksum `json:"checksums,omitempty"`
	Refs      []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelation struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// sbom says of which modules, in which versions, each binary is made, as the
// linker wrote it into them.
func sbom(b *binaries, ref name.Tag, digest v1.Hash, created time.Time) ([]byte, error) {
	const image = "SPDXRef-image"
	doc := spdx{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: ref.String(),
		Namespace: "https://github.com/sluicesync/sluice/spdx/" + digest.Hex,
		Creation: spdxCreation{
			Created: timeOr1970(created).Format(time.RFC3339), Creators: []string{"Tool: sluice-images"},
		},
		Packages: []spdxPackage{{
			ID: image, Name: strings.TrimPrefix(ref.RepositoryStr(), "library/"), Version: digest.String(), Download: "NOASSERTION", Purpose: "CONTAINER",
			Checksums: []spdxChecksum{{"SHA256", digest.Hex}},
		}},
		Relationships: []spdxRelation{{"SPDXRef-DOCUMENT", "DESCRIBES", image}},
	}
	modules := map[string]spdxPackage{}
	add := func(path, version string) string {
		p := module(path, version)
		modules[p.ID] = p
		return p.ID
	}
	for _, n := range b.names {
		path := filepath.Join(b.dir, n)
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read what %s is made of: %w", n, err)
		}
		sum, err := sum(path)
		if err != nil {
			return nil, err
		}
		id := "SPDXRef-binary-" + n
		doc.Packages = append(doc.Packages, spdxPackage{
			ID: id, Name: n, Version: info.Main.Version, Download: "NOASSERTION", Purpose: "APPLICATION",
			Checksums: []spdxChecksum{{"SHA256", sum}},
		})
		doc.Relationships = append(doc.Relationships, spdxRelation{image, "CONTAINS", id},
			spdxRelation{id, "DEPENDS_ON", add("stdlib", strings.TrimPrefix(strings.Fields(info.GoVersion)[0], "go"))})
		for _, d := range info.Deps {
			if d.Replace != nil {
				// A sibling, replaced by its folder, keeps its name.
				d = &debug.Module{Path: d.Path, Version: cmp.Or(d.Replace.Version, d.Version)}
			}
			doc.Relationships = append(doc.Relationships, spdxRelation{id, "DEPENDS_ON", add(d.Path, d.Version)})
		}
	}
	if self, ok := debug.ReadBuildInfo(); ok {
		if i := slices.IndexFunc(self.Deps, func(d *debug.Module) bool { return d.Path == rootStore }); i >= 0 {
			doc.Relationships = append(doc.Relationships, spdxRelation{image, "CONTAINS", add(rootStore, self.Deps[i].Version)})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(modules)) {
		doc.Packages = append(doc.Packages, modules[id])
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(out, '\n'), nil
}

// timeOr1970 is t, or the beginning of time if there is none: the format asks for
// one.
func timeOr1970(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0).UTC()
	}
	return t
}

// notInID is what an identifier of SPDX cannot have.
var notInID = regexp.MustCompile(`[^A-Za-z0-9.]+`)

func module(path, version string) spdxPackage {
	return spdxPackage{
		ID: "SPDXRef-module-" + notInID.ReplaceAllString(path+"-"+version, "-"), Name: path, Version: version, Download: "NOASSERTION", Purpose: "LIBRARY",
		Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")}},
	}
}

func sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
