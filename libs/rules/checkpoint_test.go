package rules

import (
	"fmt"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
)

// TestCheckpoints: which rows carry which write checkpoints (spec/03 section 10).
func TestCheckpoints(t *testing.T) {
	plan, ds := Compile(`
bucket_definitions:
  all:
    data: [SELECT * FROM todos]
event_definitions:
  write_checkpoints:
    payloads:
      - SELECT "user" AS user_id, client_id, checkpoint FROM acks WHERE checkpoint = 1
      - SELECT 'second' AS user_id, client_id, checkpoint FROM acks
  checkpoint_requests:
    payloads: [SELECT * FROM requests]
  other:
    payloads: [SELECT * FROM acks]
`, Options{})
	if plan == nil {
		t.Fatal(ds)
	}
	if !plan.CustomCheckpoints() {
		t.Error("the config's events are not known to carry write checkpoints")
	}
	if fmt.Sprint(plan.SourceTables()) != "[{default public acks} {default public requests} {default public todos}]" {
		t.Errorf("tables %v", plan.SourceTables())
	}
	columns := []model.Column{{Name: "id", Key: true}, {Name: "user"}, {Name: "user_id"}, {Name: "client_id"}, {Name: "checkpoint"}}
	acks := plan.Table(&model.SourceTable{Schema: "public", Name: "acks", Connection: "default", Columns: columns})
	requests := plan.Table(&model.SourceTable{Schema: "public", Name: "requests", Connection: "default", Columns: columns})
	if data, parameters := acks.Uses(); data || parameters {
		t.Error("events count as data")
	}
	text, integer, null := model.TextValue, model.IntegerValue, model.NullValue
	id := text("i")
	const (
		wrong  = "no write checkpoint: checkpoint is not a number from 1 to 2^63-1"
		client = "no write checkpoint: client_id is neither a text nor an integer, or empty"
		user   = "no write checkpoint: user_id is neither a text nor an integer, or empty"
	)
	for _, c := range []struct {
		table *TableEvaluator
		row   []model.Value
		want  string
	}{
		{acks, []model.Value{id, text("u"), null, text("c"), integer(7)}, "{u/c 7 false}"},
		{acks, []model.Value{id, integer(12), null, integer(3), text("9223372036854775807")}, "{12/3 9223372036854775807 false}"},
		{requests, []model.Value{id, null, text("u"), text("c"), integer(7)}, "{u/c 7 true}"},
		{requests, []model.Value{id, text("u"), null, text("c"), integer(7)}, user},
		{acks, []model.Value{id, text(""), null, text("c"), integer(7)}, user},
		{acks, []model.Value{id, model.BlobValue("u"), null, text("c"), integer(7)}, user},
		{acks, []model.Value{id, text("u"), null, null, integer(7)}, client},
		{acks, []model.Value{id, text("u"), null, text("c"), null}, wrong},
		{acks, []model.Value{id, text("u"), null, text("c"), integer(0)}, wrong},
		{acks, []model.Value{id, text("u"), null, text("c"), integer(-1)}, wrong},
		{acks, []model.Value{id, text("u"), null, text("c"), model.RealValue(7)}, wrong},
		{acks, []model.Value{id, text("u"), null, text("c"), text("9223372036854775808")}, wrong},
		{acks, []model.Value{id, text("u"), null, text("c"), text("7x")}, wrong},
	} {
		var out RowResult
		c.table.EvaluateRow(c.row, &out)
		var got []string
		for i := range out.Events {
			c, ok, err := out.Events[i].Checkpoint()
			switch {
			case err != nil:
				got = append(got, err.Error())
			case ok:
				got = append(got, fmt.Sprint(c))
			}
		}
		if fmt.Sprint(got) != "["+c.want+"]" {
			t.Errorf("row %v gives %v, want %s", c.row, got, c.want)
		}
	}

	plan, _ = Compile("bucket_definitions:\n  all:\n    data: [SELECT * FROM todos]\nevent_definitions:\n  other:\n    payloads: [SELECT * FROM acks]\n", Options{})
	if plan == nil || plan.CustomCheckpoints() {
		t.Error("an event of any name counts as one that carries write checkpoints")
	}
}
