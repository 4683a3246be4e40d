package conformance

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

// decodeValue reads a value of a record. What a source delivers ($source) is
// converted under the config's options.
func decodeValue(raw json.RawMessage, o model.ValueOptions) (model.Value, error) {
	raw = bytes.TrimSpace(raw)
	switch raw[0] {
	case 'n':
		return model.NullValue, nil
	case '"':
		s, err := text(raw)
		return model.TextValue(s), err
	case '{':
		return decodeSpecial(raw, o)
	}
	return number(string(raw))
}

// text decodes a JSON string, keeping lone surrogates.
func text(raw json.RawMessage) (string, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", err
	}
	if !strings.Contains(s, "\ufffd") || !bytes.Contains(raw, []byte(`\ud`)) && !bytes.Contains(raw, []byte(`\uD`)) {
		return s, nil
	}
	return surrogates(string(raw[1 : len(raw)-1]))
}

// surrogates decodes the escapes of a string whose surrogates may be alone.
func surrogates(s string) (string, error) {
	var b []byte
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			b = append(b, s[i])
			i++
			continue
		}
		n := 2
		if s[i+1] == 'u' {
			n = 6
		}
		u, err := strconv.ParseUint(s[i+2:i+n], 16, 16)
		paired := n == 6 && err == nil && u>>10 == 0xd800>>10 && i+12 <= len(s) && s[i+6] == '\\'
		if n == 6 && err == nil && u>>11 == 0xd800>>11 && !paired {
			b = append(b, 0xed, byte(0x80|u>>6&0x3f), byte(0x80|u&0x3f))
			i += n
			continue
		}
		if paired {
			n = 12
		}
		var part string
		if err := json.Unmarshal([]byte(`"`+s[i:i+n]+`"`), &part); err != nil {
			return "", err
		}
		b = append(b, part...)
		i += n
	}
	return string(b), nil
}

func number(s string) (model.Value, error) {
	if strings.ContainsAny(s, ".eE") {
		f, err := strconv.ParseFloat(s, 64)
		return model.RealValue(f), err
	}
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		return model.IntegerValue(i), nil
	}
	return model.BigIntegerValue(s), nil
}

func decodeSpecial(raw json.RawMessage, o model.ValueOptions) (model.Value, error) {
	var v struct {
		Blob   *string         `json:"$blob"`
		Real   *string         `json:"$real"`
		Source json.RawMessage `json:"$source"`
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return model.Value{}, err
	}
	switch {
	case v.Blob != nil:
		b, err := hex.DecodeString(*v.Blob)
		return model.BlobValue(string(b)), err
	case v.Real != nil:
		f, ok := map[string]float64{"NaN": math.NaN(), "Infinity": math.Inf(1), "-Infinity": math.Inf(-1)}[*v.Real]
		if !ok {
			return model.Value{}, fmt.Errorf("unknown real %s", *v.Real)
		}
		return model.RealValue(f), nil
	case v.Source != nil:
		return convertSource(v.Source, o)
	}
	return model.Value{}, fmt.Errorf("unknown value %s", raw)
}
