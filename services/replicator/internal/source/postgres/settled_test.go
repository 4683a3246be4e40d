package postgres

import "testing"

// TestSnapshotSees: which transactions of the log a snapshot of the server sees,
// where ids of the log lack what counts how often they began anew.
func TestSnapshotSees(t *testing.T) {
	const era = 1 << 32
	for _, c := range []struct {
		text string
		id   uint32
		want bool
	}{
		{"10:10:", 9, true},
		{"10:10:", 10, false},
		{"10:10:", 11, false},
		{"10:14:10,12", 10, false},
		{"10:14:10,12", 11, true},
		{"10:14:10,12", 12, false},
		{"10:14:10,12", 14, false},
		{"4294967300:4294967310:4294967300", 3, true},           // of this era
		{"4294967300:4294967310:4294967300", 4, false},          // runs
		{"4294967300:4294967310:4294967300", 14, false},         // later
		{"4294967300:4294967310:4294967300", 4294967295, true},  // of the one before
		{"4294967295:4294967295:", 2, false},                    // of the next one
		{"4294967290:4294967298:4294967297", 4294967295, true},  // of the one before, and done
		{"4294967290:4294967298:4294967295", 4294967295, false}, // and runs
		{"4294967290:4294967298:4294967297", era - 1 - 5, true}, // the first that may run, done
	} {
		s, err := parseSnapshot(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.sees(c.id); got != c.want {
			t.Errorf("%s sees %d: %v", c.text, c.id, got)
		}
	}
	for _, text := range []string{"", "1:2", "1:2:x", "a:2:"} {
		if _, err := parseSnapshot(text); err == nil {
			t.Errorf("%q is taken for a snapshot", text)
		}
	}
}
