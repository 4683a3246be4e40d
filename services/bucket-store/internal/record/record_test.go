package record

import (
	"errors"
	"reflect"
	"testing"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

var sample = &ledger.Record{
	Buckets: []ledger.Membership{{Bucket: "b1", ObjectType: "t", ObjectID: "i"}, {Bucket: "b2", ObjectType: "t", ObjectID: "i"}, {Bucket: "", ObjectType: "u", ObjectID: ""}},
	Lookups: []model.ParameterEntry{{Lookup: "l", Values: "[]"}},
	Source:  "source",
}

// compared is sample as a ledger that compares knows it.
var compared = &ledger.Record{Buckets: sample.Buckets, Lookups: sample.Lookups, Source: sample.Source, Log: 300, Digest: 0x0102030405060708}

const comparedForm = "\x80\x00" + "\xac\x02" + "\x08\x07\x06\x05\x04\x03\x02\x01" + form

// form is sample as every version of Sluice has stored it.
const form = "\x03" + "\x02b1\x02t\x02i" + "\x02b2\x00\x00" + "\x00\x02u\x01" + "\x01" + "\x01l\x02[]" + "source"

func TestForm(t *testing.T) {
	for form, rec := range map[string]*ledger.Record{form: sample, comparedForm: compared} {
		if got := string(Append(nil, rec)); got != form {
			t.Errorf("appended %q, want %q", got, form)
		}
		got, err := Read(form)
		if err != nil || !reflect.DeepEqual(got, rec) {
			t.Errorf("read %+v %v, want %+v", got, err, rec)
		}
	}
	if got, err := Read(string(Append([]byte("before"), &ledger.Record{}))[len("before"):]); err != nil || !reflect.DeepEqual(got, &ledger.Record{}) {
		t.Errorf("an empty record is read as %+v %v", got, err)
	}
}

// All that is cut off, but within the source, is missed.
func TestCut(t *testing.T) {
	for n := range len(comparedForm) - len("source") {
		if _, err := Read(comparedForm[:n]); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("read %q: %v", comparedForm[:n], err)
		}
		if n < len(form)-len("source") {
			if _, err := Read(form[:n]); !errors.Is(err, store.ErrDamaged) {
				t.Errorf("read %q: %v", form[:n], err)
			}
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(form)
	f.Add(comparedForm)
	f.Add("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
	f.Add("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02")
	f.Fuzz(func(t *testing.T, value string) {
		rec, err := Read(value)
		if err != nil {
			if !errors.Is(err, store.ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		again, err := Read(string(Append(nil, rec)))
		if err != nil || !reflect.DeepEqual(rec, again) {
			t.Fatalf("%+v is read again as %+v %v", rec, again, err)
		}
	})
}
