package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
)

// TestDigest: a digest is that of everything in the puts, and of nothing else; and
// it is what is stored.
func TestDigest(t *testing.T) {
	puts := func() []model.Put {
		return []model.Put{
			{Bucket: "1#a[]", ObjectType: "todos", ObjectID: "t1", Data: `{"id":"t1","title":"something to do"}`, Checksum: 7},
			{Bucket: "1#b[]", ObjectType: "todos", ObjectID: "t1", Data: `{"id":"t1","title":"something to do"}`, Checksum: 7},
			{Bucket: "1#b[]", ObjectType: "others", ObjectID: "t2", Data: ``, Checksum: 9},
		}
	}
	if got := fmt.Sprintf("%016x %016x", digestOf(puts()), digestOf(puts()[2:])); got != digests {
		t.Errorf("digests %s, what is stored was made with %s", got, digests)
	}
	if digestOf(nil) != 0 {
		t.Error("no puts have a digest")
	}
	reversed := puts()
	slices.Reverse(reversed)
	if digestOf(reversed) != digestOf(puts()) {
		t.Error("the order is in the digest")
	}
	seen := map[uint64]string{digestOf(puts()): "as it was"}
	differs := func(what string, ps []model.Put) {
		t.Helper()
		d := digestOf(ps)
		if other, ok := seen[d]; ok {
			t.Errorf("%s has the digest of %s", what, other)
		}
		seen[d] = what
	}
	for n := range puts() {
		for what, change := range map[string]func(p *model.Put){
			"bucket":   func(p *model.Put) { p.Bucket += "x" },
			"type":     func(p *model.Put) { p.ObjectType += "x" },
			"id":       func(p *model.Put) { p.ObjectID += "x" },
			"data":     func(p *model.Put) { p.Data += "x" },
			"zero":     func(p *model.Put) { p.Data += "\x00" },
			"checksum": func(p *model.Put) { p.Checksum++ },
			"shift":    func(p *model.Put) { p.Bucket, p.ObjectType = p.Bucket+p.ObjectType[:1], p.ObjectType[1:] },
		} {
			ps := puts()
			change(&ps[n])
			differs(fmt.Sprint(what, " of ", n), ps)
		}
		differs(fmt.Sprint("without ", n), slices.Delete(puts(), n, n+1))
	}
	// Every byte counts, wherever it is, and whichever bit of it.
	long := strings.Repeat("abcdefg", 10)
	for i := range long {
		for bit := range 8 {
			ps := puts()
			ps[0].Data = long[:i] + string([]byte{long[i] ^ 1<<bit}) + long[i+1:]
			differs(fmt.Sprintf("bit %d of byte %d", bit, i), ps)
		}
	}
}

// digests of the puts, and of the last of them, as they have ever been.
const digests = "6edf4a59dc3e2b45 8537ffcc4fe3c1d2"

func BenchmarkDigest(b *testing.B) {
	puts := []model.Put{{Bucket: `1#own["u1"]`, ObjectType: "todos", ObjectID: "8a7d-aaaa", Data: strings.Repeat("x", 250)}}
	b.ReportAllocs()
	for b.Loop() {
		digestOf(puts)
	}
}
