package evaluate

import (
	"fmt"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
)

// compiled is a Plan of a sync config.
type compiled struct{ *rules.Plan }

func (c compiled) Table(t *model.SourceTable) *Table {
	if e := c.Plan.Table(t); e != nil {
		return NewTable(t, e)
	}
	return NewTable(t, nil)
}

// TestCheckpoints: inserts, updates and copied rows carry write checkpoints,
// deletes and rows that are not complete do not; invalid ones are reported (D9).
func TestCheckpoints(t *testing.T) {
	config, ds := rules.Compile(`
bucket_definitions:
  all:
    data: [SELECT * FROM acks]
event_definitions:
  write_checkpoints:
    payloads:
      - SELECT user_id, client_id, checkpoint FROM acks
  checkpoint_requests:
    payloads:
      - SELECT user_id, client_id, checkpoint FROM requests
  audit:
    payloads: [SELECT nosuch FROM acks]
`, rules.Options{})
	if config == nil {
		t.Fatal(ds)
	}
	plan := compiled{config}
	acks, requests := sourceTable("acks", "id", "user_id", "client_id", "checkpoint", "note"), sourceTable("requests", "user_id", "client_id", "checkpoint")
	w := &Worker{}
	evaluate := func(changes ...model.Change) (problems []string) {
		t.Helper()
		p := Prepare(&model.ChangeBatch{Previous: model.Cursor{Position: "P"}, Changes: changes}, plan)
		if err := p.Fill(make([]string, len(p.Missing()))); err != nil {
			t.Fatal(err)
		}
		w.Evaluate(p, plan, func(p Problem) {
			problems = append(problems, fmt.Sprintf("%s %s %s %v: %v", p.Table.Name, p.Key, p.Definition, p.Removed, p.Err))
		})
		return problems
	}
	problems := evaluate(
		model.Change{Table: acks, Op: model.SnapshotRow, Row: row(1, "u", "c", 5, "")},
		model.Change{Table: acks, Op: model.Insert, Row: row(2, "v", "c", 1, "")},
		model.Change{Table: acks, Op: model.Update, Row: row(1, "u", "c", 9, "")},
		model.Change{Table: acks, Op: model.Update, Row: row(1, "u", "c", 8, "")}, // lower
		model.Change{Table: acks, Op: model.Delete, Before: row(2, "v", "c", 100, "")},
		model.Change{Table: acks, Op: model.Insert, Row: row(3, "w", "", 4, "")},   // invalid
		model.Change{Table: acks, Op: model.Update, Row: row(4, "x", "c", 4, nil)}, // incomplete
		model.Change{Table: requests, Op: model.Insert, Row: row("u", "d", "30")},
	)
	if got, want := fmt.Sprint(w.Checkpoints()), "[{u/c 9 false} {v/c 1 false} {u/d 30 true}]"; got != want {
		t.Errorf("write checkpoints %s, want %s", got, want)
	}
	want := []string{
		"acks id=3 write_checkpoints false: no write checkpoint: client_id is neither a text nor an integer, or empty",
		"acks id=4  true: the source did not send unchanged values, and the row's previous version is not known: note",
	}
	if fmt.Sprint(problems) != fmt.Sprint(want) {
		t.Errorf("problems %q, want %q", problems, want)
	}
	if evaluate(model.Change{Table: acks, Op: model.Delete, Before: row(1, "", "", 0, "")}); len(w.Checkpoints()) != 0 {
		t.Errorf("write checkpoints of the batch before: %v", w.Checkpoints())
	}
}
