package conformance

import (
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
)

// checksum runs a vector of checksums and identifiers.
func checksum(raw json.RawMessage) (name, problem string) {
	var v struct {
		Name, Kind string
		Input      struct {
			Table, ID, Data, Subkey string
			Checksums               []uint32
			Columns                 ordered
			TableID                 string `json:"table_id"`
			ReplicaUUID             string `json:"replica_uuid"`
		}
		Checksum     uint32
		BSON         string `json:"bson_hex"`
		UUID, Subkey string
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return "unreadable vector", err.Error()
	}
	var got model.Checksum
	switch v.Kind {
	case "put":
		got, _ = model.PutChecksum(v.Input.Table, v.Input.ID, v.Input.Data, nil)
	case "remove":
		got = model.RemoveChecksum(v.Input.Subkey)
	case "sum":
		for _, c := range v.Input.Checksums {
			got += model.Checksum(c)
		}
	case "row_identity":
		return v.Name, rowIdentity(v.Input.Columns, v.BSON, v.UUID)
	case "subkey":
		if v.Input.ReplicaUUID == "" {
			return v.Name, "" // of another form: informative, as the README says
		}
		table, err1 := uuid(v.Input.TableID)
		row, err2 := uuid(v.Input.ReplicaUUID)
		if err1 != nil || err2 != nil {
			return v.Name, "" // table ids of another form, likewise
		}
		if s := (model.RowKey{Table: table, Row: row}).Subkey(); s != v.Subkey {
			return v.Name, fmt.Sprintf("subkey %s, expected %s", s, v.Subkey)
		}
		return v.Name, ""
	default:
		return v.Name, "unknown kind " + v.Kind
	}
	if uint32(got) != v.Checksum {
		return v.Name, fmt.Sprintf("checksum %d, expected %d", got, v.Checksum)
	}
	return v.Name, ""
}

func rowIdentity(columns ordered, bson, want string) string {
	t := &model.SourceTable{}
	var row []model.Value
	for _, m := range columns {
		v, err := decodeValue(m.value, model.ValueOptions{})
		if err != nil {
			return err.Error()
		}
		t.Columns = append(t.Columns, model.Column{Name: m.key, Key: true})
		row = append(row, v)
	}
	id, ok, b := model.RowIdentity(t, row, nil)
	if !ok {
		id = model.RowID(model.UUID5(b))
	}
	if got := hex.EncodeToString(b); got != bson {
		return fmt.Sprintf("BSON %s, expected %s", got, bson)
	}
	w, err := uuid(want)
	if want != "" && (err != nil || w != [16]byte(id)) {
		return fmt.Sprintf("id %x, expected %s", id, want)
	}
	return ""
}

func uuid(s string) (u [16]byte, err error) {
	if len(s) != 36 {
		return u, fmt.Errorf("%q is no UUID", s)
	}
	_, err = hex.Decode(u[:], []byte(s[0:8]+s[9:13]+s[14:18]+s[19:23]+s[24:36]))
	return u, err
}
