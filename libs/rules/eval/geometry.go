package eval

import (
	"encoding/hex"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/geo"
)

// geometry applies f to the geometry that v is: a blob in EWKB, or text that is
// its hexadecimal digits. NULL and numbers give NULL.
func geometry(v model.Value, f func(g *geo.Geometry) model.Value) (model.Value, error) {
	var wkb string
	switch v.Kind() {
	case model.Blob:
		wkb = v.Str()
	case model.Text:
		// Text that is no hexadecimal ends where it goes wrong, and so does the
		// geometry.
		b, _ := hex.DecodeString(v.Str()[:len(v.Str())&^1])
		wkb = string(b)
	default:
		return model.NullValue, nil
	}
	g, err := geo.Parse(wkb)
	if err != nil {
		return model.Value{}, err
	}
	return f(&g), nil
}

func asGeoJSON(v model.Value) (model.Value, error) {
	return geometry(v, func(g *geo.Geometry) model.Value { return model.TextValue(g.GeoJSON()) })
}

func asText(v model.Value) (model.Value, error) {
	return geometry(v, func(g *geo.Geometry) model.Value { return model.TextValue(g.WKT()) })
}

// coordinate is the i-th coordinate of a point, NULL for other geometries.
func coordinate(v model.Value, i int) (model.Value, error) {
	return geometry(v, func(g *geo.Geometry) model.Value {
		if g.Kind != geo.Point {
			return model.NullValue
		}
		return model.RealValue(g.Coordinates[i])
	})
}

func stX(v model.Value) (model.Value, error) { return coordinate(v, 0) }

func stY(v model.Value) (model.Value, error) { return coordinate(v, 1) }
