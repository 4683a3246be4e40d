package conformance

import (
	"encoding/json"
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
)

// convertSource makes the SQLite value of what a source delivers.
func convertSource(raw json.RawMessage, o model.ValueOptions) (model.Value, error) {
	var v struct {
		Kind  string
		Value json.RawMessage
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return model.Value{}, err
	}
	switch v.Kind {
	case "bool":
		return model.BoolValue(string(v.Value) == "true"), nil
	case "json":
		s, err := text(v.Value)
		return model.TextValue(s), err
	}
	return model.Value{}, fmt.Errorf("unknown source value %s", v.Kind)
}
