package rules

import (
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

// Fate is what becomes of a definition when one config takes another's place.
type Fate uint8

const (
	Kept    Fate = iota + 1 // the same, perhaps in other words or at another place
	Changed                 // another one of the same name
	Added
	Dropped
)

func (f Fate) String() string {
	switch f {
	case Kept:
		return "kept"
	case Changed:
		return "changed"
	case Added:
		return "added"
	case Dropped:
		return "dropped"
	}
	return "Fate"
}

// DefinitionFate is the fate of a definition, as it is in the newer config if it
// is there.
type DefinitionFate struct {
	Definition
	Fate Fate
}

// Difference is what differs between two configs.
type Difference struct {
	// Same: they mean the same (see Plan.Identity), and all definitions are kept.
	Same bool
	// Fits: not the same, but all that the newer one needs is made for the older
	// one already (see Plan.Over).
	Fits bool
	// Adds: all that the newer one needs besides can be made in addition to what is
	// made for the older one, from the rows of Tables.
	Adds   bool
	Tables []model.TablePattern
	// Definitions of both, by name.
	Definitions []DefinitionFate
	// Values: the source's values are converted differently, in all definitions.
	Values bool
	// Events: the event definitions differ.
	Events bool
}

// Diff compares a config with one that is to take its place.
func Diff(older, newer *Plan) *Difference {
	d := &Difference{Same: older.Identity() == newer.Identity(), Values: older.values != newer.values, Events: older.eventKey() != newer.eventKey()}
	if !d.Same {
		_, d.Fits = newer.Over(older)
		d.Fits = d.Fits && older.CustomCheckpoints() == newer.CustomCheckpoints()
		d.add(older, newer)
	}
	was := map[string]*Definition{}
	for i := range older.definitions {
		was[older.definitions[i].Name] = &older.definitions[i]
	}
	for _, n := range newer.definitions {
		o := was[n.Name]
		delete(was, n.Name)
		switch {
		case o == nil:
			d.Definitions = append(d.Definitions, DefinitionFate{n, Added})
		case o.Identity == n.Identity:
			d.Definitions = append(d.Definitions, DefinitionFate{n, Kept})
		default:
			d.Definitions = append(d.Definitions, DefinitionFate{n, Changed})
		}
	}
	for _, o := range was {
		d.Definitions = append(d.Definitions, DefinitionFate{*o, Dropped})
	}
	slices.SortFunc(d.Definitions, func(a, b DefinitionFate) int { return strings.Compare(a.Name, b.Name) })
	return d
}

// add finds whether what older lacks of newer can be added, as bucket-store does.
func (d *Difference) add(older, newer *Plan) {
	if d.Fits || d.Values || older.CustomCheckpoints() != newer.CustomCheckpoints() {
		return
	}
	has := older.Parts()
	tables := newer.PartTables()
	for i, part := range newer.Parts() {
		if slices.Contains(has, part) {
			d.Adds = true // they have something in common
			continue
		}
		if len(tables[i]) == 0 {
			d.Adds, d.Tables = false, nil
			return
		}
		for _, t := range tables[i] {
			if !slices.Contains(d.Tables, t) {
				d.Tables = append(d.Tables, t)
			}
		}
	}
	if !d.Adds {
		d.Tables = nil
	}
}
