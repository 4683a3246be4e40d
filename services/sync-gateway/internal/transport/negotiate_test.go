package transport

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/coding"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/line"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/reply"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNegotiation(t *testing.T) {
	const bson, ndjson = "application/vnd.powersync.bson-stream", "application/x-ndjson"
	for accept, want := range map[string]line.Form{
		"":                                     line.NDJSON,
		"*/*":                                  line.NDJSON, // older SDKs, which understand nothing else (spec/07)
		bson + ";q=0.9," + ndjson + ";q=0.8":   line.BSON,   // the current SDK
		ndjson + ";q=0.9," + bson + ";q=0.8":   line.NDJSON,
		bson:                                   line.BSON,
		ndjson:                                 line.NDJSON,
		bson + ";q=0":                          line.NDJSON,
		bson + ", " + ndjson:                   line.BSON,
		ndjson + ", " + bson:                   line.NDJSON,
		bson + ";q=0.5, */*":                   line.NDJSON,
		bson + ", */*;q=0.1":                   line.BSON,
		"text/html":                            line.NDJSON,
		"application/vnd.powersync.bson-strea": line.NDJSON,
		strings.ToUpper(bson):                  line.BSON,
		bson + ";q=x":                          line.NDJSON,
		bson + ";q=7":                          line.NDJSON,
		";;;,,,=":                              line.NDJSON,
	} {
		if got := negotiateForm([]string{accept}, true); got != want {
			t.Errorf("%q: %v, want %v", accept, got, want)
		}
	}
	if got := negotiateForm(nil, false); got != line.Legacy {
		t.Errorf("without raw_data: %v", got)
	}
	for accept, want := range map[string]coding.Coding{
		"": coding.Identity, "identity": coding.Identity, "gzip, deflate": coding.Gzip, "gzip, deflate, br, zstd": coding.Zstd,
		"br": coding.Identity, "gzip;q=0": coding.Identity, "zstd;q=0.5, gzip": coding.Gzip, "gzip;q=0.5, zstd;q=0.5": coding.Zstd,
		"identity;q=1, gzip;q=0.5": coding.Identity, "*": coding.Zstd, "*;q=0": coding.Identity, "x-gzip": coding.Gzip, "*, zstd;q=0": coding.Gzip,
	} {
		if got := negotiateCoding([]string{accept}); got != want {
			t.Errorf("%q: %v, want %v", accept, got, want)
		}
	}
}

func TestParseStream(t *testing.T) {
	// The bodies of spec/07, and what their neighbours tolerate.
	for _, body := range []string{
		``, `{}`, ` {} `,
		`{"buckets":[],"include_checksum":true,"raw_data":true,"binary_data":true,"client_id":"5c88e913-8e5e-4105-980c-f18665f01969","parameters":{},"streams":{"include_defaults":true,"subscriptions":[]},"app_metadata":{}}`,
		`{"buckets":[{"name":"41#my_lists|0[\"u\"]","after":"2123180"}],"streams":{"include_defaults":true,"subscriptions":[{"stream":"topic","parameters":{"topic":"u"},"override_priority":null}]}}`,
		`{"buckets":[{"name":"a","after":"9223372036854775807","extra":1}],"only":["a"],"unknown":{"x":[]},"parameters":{"a":null}}`,
		`{"streams":{"subscriptions":[{"stream":"x","parameters":null,"override_priority":1}]}}`,
		`{"streams":{"subscriptions":[{"stream":"x","parameters":null,"override_priority":1.5},{"stream":"x","parameters":null,"override_priority":-1e300}]}}`,
	} {
		if _, err := parseStream([]byte(body), nil); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
	r, err := parseStream([]byte(`{"buckets":[{"name":"a","after":"7"}],"client_id":"c","raw_data":true,"app_metadata":{"v":"1"},"parameters":{"p":1},
		"streams":{"include_defaults":false,"subscriptions":[{"stream":"s","parameters":{"x":12345678901234567890},"override_priority":2},{"stream":"t","parameters":null,"override_priority":null}]}}`), url.Values{"client_id": {"from query"}})
	if err != nil {
		t.Fatal(err)
	}
	if r.positions["a"] != 7 || r.clientID != "c" || !r.rawData || r.appMetadata["v"] != "1" || string(r.parameters) != `{"p":1}` || r.includeDefaults {
		t.Errorf("%+v", r)
	}
	if s := r.subscriptions; len(s) != 2 || s[0].Stream != "s" || string(s[0].Parameters) != `{"x":12345678901234567890}` || *s[0].Priority != 2 || s[1].Parameters != nil || s[1].Priority != nil {
		t.Errorf("%+v", s)
	}
	if r, err := parseStream(nil, url.Values{"client_id": {"from query"}}); err != nil || r.clientID != "from query" || !r.includeDefaults {
		t.Errorf("%+v %v", r, err)
	}
	for body, want := range map[string]string{
		`[]`: "body must be", `null`: "body must be", `"x"`: "body must be", `{`: "body must be", `{} {}`: "body must be", "\xff": "body must be",
		strings.Repeat(`{"a":`, 200) + `1` + strings.Repeat(`}`, 200):                "nested deeper",
		`{"parameters":` + strings.Repeat(`[`, 200) + strings.Repeat(`]`, 200) + `}`: "nested deeper",
		`{"buckets":{}}`:                                           "buckets must be",
		`{"buckets":null}`:                                         "buckets must be",
		`{"buckets":[{}]}`:                                         "buckets[0] must be",
		`{"buckets":[{"name":"a"}]}`:                               "buckets[0] must be",
		`{"buckets":[{"name":1,"after":"1"}]}`:                     "buckets must be",
		`{"buckets":[{"name":"a","after":1}]}`:                     "buckets must be",
		`{"buckets":[{"name":"a","after":"x"}]}`:                   "buckets[0].after must be",
		`{"buckets":[{"name":"a","after":"-1"}]}`:                  "buckets[0].after must be",
		`{"buckets":[{"name":"a","after":""}]}`:                    "buckets[0].after must be",
		`{"buckets":[{"name":"a","after":"9223372036854775808"}]}`: "buckets[0].after must be",
		`{"raw_data":"yes"}`:                                       "raw_data must be",
		`{"client_id":1}`:                                          "client_id must be",
		`{"parameters":[]}`:                                        "parameters must be",
		`{"app_metadata":{"a":1}}`:                                 "app_metadata must be",
		`{"streams":[]}`:                                           "streams must be",
		`{"streams":{}}`:                                           "streams.subscriptions is required",
		`{"streams":{"subscriptions":[1]}}`:                        "streams.subscriptions must be",
		`{"streams":{"subscriptions":[null]}}`:                     "streams.subscriptions[0] must be",
		`{"streams":{"subscriptions":[{}]}}`:                       "streams.subscriptions[0].stream is required",
		`{"streams":{"subscriptions":[{"stream":"x","parameters":1,"override_priority":1}]}}`:    "streams.subscriptions[0].parameters must be",
		`{"streams":{"subscriptions":[{"stream":"x","parameters":{},"override_priority":"1"}]}}`: "streams.subscriptions[0].override_priority must be",
		`{"streams":{"subscriptions":[{"stream":"x"}]}}`:                                         "streams.subscriptions[0].parameters is required",
	} {
		_, err := parseStream([]byte(body), nil)
		var f *reply.Fault
		if !errors.As(err, &f) || errs.CodeOf(err) != errs.S2001 || !strings.Contains(fmt.Sprint(f.Messages), want) {
			t.Errorf("%s: %v %+v, want %q", clip(body), err, f, want)
		}
	}
}

func TestParseCheckpoint(t *testing.T) {
	for body, want := range map[string]uint64{
		`{"client_id":"c","checkpoint_request_id":"1"}`:                   1,
		`{"client_id":"c","checkpoint_request_id":1}`:                     1,
		`{"client_id":"c","checkpoint_request_id":9007199254740991}`:      1<<53 - 1,
		`{"client_id":"c","checkpoint_request_id":"9223372036854775807"}`: 1<<63 - 1,
		`{"checkpoint_request_id":5}`:                                     0, `{"client_id":"c"}`: 0,
		`{"client_id":"c","checkpoint_request_id":0}`: 0, `{"client_id":"c","checkpoint_request_id":"0"}`: 0, `{"client_id":"c","checkpoint_request_id":-1}`: 0,
		`{"client_id":"c","checkpoint_request_id":"-1"}`: 0, `{"client_id":"c","checkpoint_request_id":1.5}`: 0, `{"client_id":"c","checkpoint_request_id":9007199254740992}`: 0,
		`{"client_id":"c","checkpoint_request_id":"9223372036854775808"}`: 0, `{"client_id":"c","checkpoint_request_id":null}`: 0, `{"client_id":"c","checkpoint_request_id":" 1"}`: 0,
		`{"client_id":"c","checkpoint_request_id":"1e3"}`: 0, `{"client_id":null,"checkpoint_request_id":1}`: 0, `{"client_id":"c","checkpoint_request_id":{}}`: 0, `{"client_id":"c","checkpoint_request_id":true}`: 0,
	} {
		client, id, err := parseCheckpoint([]byte(body), nil)
		switch {
		case want == 0 && errs.CodeOf(err) != errs.S2001:
			t.Errorf("%s: %d, %v", body, id, err)
		case want != 0 && (err != nil || id != want || client != "c"):
			t.Errorf("%s: %q %d, %v", body, client, id, err)
		}
	}
}

func FuzzParseStream(f *testing.F) {
	f.Add([]byte(`{"buckets":[{"name":"a","after":"1"}],"streams":{"subscriptions":[{"stream":"x","parameters":{},"override_priority":1}]}}`))
	f.Add([]byte(`{"parameters":[[[[]]]]}`))
	f.Add([]byte(`{"a":"\ud800"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parseStream(body, nil)
		if err == nil && r == nil || err != nil && errs.CodeOf(err) != errs.S2001 {
			t.Fatalf("%v %v", r, err)
		}
		if _, _, err := parseCheckpoint(body, nil); err != nil && errs.CodeOf(err) != errs.S2001 {
			t.Fatal(err)
		}
	})
}
