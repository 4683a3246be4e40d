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

// form is sample as every version of Sluice has stored it.
const form = "\x03" + "\x02b1\x02t\x02i" + "\x02b2\x00\x00" + "\x00\x02u\x01" + "\x01" + "\x01l\x02[]" + "source"

func TestForm(t *testing.T) {
	if got := string(Append(nil, sample)); got != form {
		t.Errorf("appended %q, want %q", got, form)
	}
	got, err := Read(form)
	if err != nil || !reflect.DeepEqual(got, sample) {
		t.Errorf("read %+v %v, want %+v", got, err, sample)
	}
	if got, err := Read(string(Append([]byte("before"), &ledger.Record{}))[len("before"):]); err != nil || !reflect.DeepEqual(got, &ledger.Record{}) {
		t.Errorf("an empty record is read as %+v %v", got, err)
	}
}

// All that is cut off, but within the source, is missed.
func TestCut(t *testing.T) {
	for n := range len(form) - len("source") {
		if _, err := Read(form[:n]); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("read %q: %v", form[:n], err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(form)
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
