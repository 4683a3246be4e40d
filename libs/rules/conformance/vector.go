// Package conformance runs conformance vectors: configs, rows and requests with
// the outputs that the reference server gave (testdata/conformance/README.md
// has the format and the levels of comparison).
//
// Invariants:
//
//   - Nothing is skipped silently: each vector and each part of it is counted
//     as passed, failed, or not enforced, with the reason.
//   - TestVectors holds that all enforced checks of the public vectors pass.
package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
)

// File is a file of vectors.
type File struct {
	Format  int
	Area    string
	Vectors []json.RawMessage
}

// Load reads all vector files of a folder, in the order of their names.
func Load(dir string) ([]File, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	if len(names) == 0 {
		return nil, fmt.Errorf("no vector files (*.json) in %s", dir)
	}
	var files []File
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var f File
		if err := json.Unmarshal(b, &f); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if f.Format != 1 {
			return nil, fmt.Errorf("read %s: format %d is unknown", name, f.Format)
		}
		files = append(files, f)
	}
	return files, nil
}

// Vector is a config with rows and requests.
type Vector struct {
	Name    string
	Config  string
	Options struct {
		DefaultSchema string `json:"default_schema"`
		BucketVersion *int64 `json:"bucket_version"`
		Schema        map[string]map[string]map[string]ordered
	}
	ParseOnly bool `json:"parse_only"`
	Rows      []Row
	Requests  []Request
	Suspect   string
	Disputed  []struct{ Row int }
	Expect    Expect
}

// Row is a source row.
type Row struct {
	Table, Schema, Connection string
	Record                    ordered
}

// Request is a client connection.
type Request struct {
	Token                json.RawMessage
	ConnectionParameters json.RawMessage `json:"connection_parameters"`
	IncludeDefaults      *bool           `json:"include_defaults"`
	Subscriptions        []struct {
		Stream     string
		Parameters json.RawMessage
		Priority   *int
	}
}

// Expect is what the reference gave.
type Expect struct {
	Accepted     bool
	Diagnostics  []Diagnostic
	OracleCrash  string `json:"oracle_crash"`
	Rows         []ExpectRow
	Requests     []ExpectRequest
	SourceTables []struct{ Connection, Schema, Table string } `json:"source_tables"`
}

// Diagnostic is a recorded finding.
type Diagnostic struct {
	Level, Class string
	Line         int
}

// ExpectRow is what a row gave.
type ExpectRow struct {
	Data         []Put
	Errors       []struct{ Class string }
	SQLiteRecord ordered `json:"sqlite_record"`
	Events       []struct {
		Event, Data string
		Error       any
	}
}

// Put is a row in a bucket.
type Put struct{ Bucket, Table, ID, Data string }

// ExpectRequest is what a request gave.
type ExpectRequest struct {
	Buckets []struct {
		Bucket     string
		Priority   int
		Definition string
		Reasons    []any
	}
	Errors []struct {
		Definition   string
		Subscription *int
	}
	Fails  bool
	Synced []Put
}

// ordered is a JSON object in its order, values undecoded.
type ordered []member

type member struct {
	key   string
	value json.RawMessage
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *ordered) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("an object is expected")
	}
	for d.More() {
		k, err := d.Token()
		if err != nil {
			return err
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return err
		}
		*o = append(*o, member{k.(string), v})
	}
	return nil
}
