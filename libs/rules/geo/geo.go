// Package geo reads geometries in (E)WKB, as PostGIS stores them, and writes
// them as GeoJSON and WKT. The spatial reference is ignored.
//
// Invariants:
//
//   - No bytes make Parse panic, and its memory is bounded by their number
//     (FuzzParse).
//   - GeoJSON is JSON unless a coordinate is not finite (FuzzParse).
package geo

import (
	"encoding/binary"
	"math"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// Kind is the kind of a Geometry, numbered as in WKB.
type Kind uint32

const (
	Point Kind = iota + 1
	LineString
	Polygon
	MultiPoint
	MultiLineString
	MultiPolygon
	Collection
)

var names = [...]string{"", "Point", "LineString", "Polygon", "MultiPoint", "MultiLineString", "MultiPolygon", "GeometryCollection"}

// Geometry is a geometry. A Point has Coordinates of one point, a LineString of
// all; the others have Parts, a Polygon's being its rings as LineStrings.
type Geometry struct {
	Kind        Kind
	HasZ, HasM  bool
	Coordinates []float64 // Dimensions for each point
	Parts       []Geometry
}

// Dimensions is how many numbers a point has.
func (g *Geometry) Dimensions() int {
	n := 2
	if g.HasZ {
		n++
	}
	if g.HasM {
		n++
	}
	return n
}

var errInvalid = &value.Error{Msg: "Not a geometry in WKB"}

// maxDepth is how deep collections may nest.
const maxDepth = 32

// Parse reads a geometry; bytes after it are ignored.
func Parse(wkb string) (Geometry, error) {
	r := reader{b: wkb}
	g := r.geometry(0)
	if r.failed {
		return Geometry{}, errInvalid
	}
	return g, nil
}

type reader struct {
	b      string
	big    bool
	failed bool
}

func (r *reader) take(n int) []byte {
	if r.failed || len(r.b) < n {
		r.failed = true
		return make([]byte, n)
	}
	b := []byte(r.b[:n])
	r.b = r.b[n:]
	return b
}

func (r *reader) uint32() uint32 {
	if r.big {
		return binary.BigEndian.Uint32(r.take(4))
	}
	return binary.LittleEndian.Uint32(r.take(4))
}

// count reads a number of items, each of which takes at least size bytes.
func (r *reader) count(size int) int {
	n := r.uint32()
	if uint64(n)*uint64(size) > uint64(len(r.b)) {
		r.failed = true
		return 0
	}
	return int(n)
}

func (r *reader) floats(dst []float64, n int) []float64 {
	for range n {
		if b := r.take(8); r.big {
			dst = append(dst, math.Float64frombits(binary.BigEndian.Uint64(b)))
		} else {
			dst = append(dst, math.Float64frombits(binary.LittleEndian.Uint64(b)))
		}
	}
	return dst
}

func (r *reader) geometry(depth int) Geometry {
	switch order := r.take(1)[0]; {
	case order > 1 || depth > maxDepth:
		r.failed = true
	default:
		r.big = order == 0
	}
	// EWKB has flags for Z, M and a spatial reference; ISO WKB adds thousands.
	const flagZ, flagM, flagReference = 1 << 31, 1 << 30, 1 << 29
	typ := r.uint32()
	g := Geometry{HasZ: typ&flagZ != 0, HasM: typ&flagM != 0}
	if typ&flagReference != 0 {
		r.uint32()
	}
	typ &= flagReference - 1
	switch typ / 1000 {
	case 0:
	case 1:
		g.HasZ = true
	case 2:
		g.HasM = true
	case 3:
		g.HasZ, g.HasM = true, true
	default:
		r.failed = true
	}
	g.Kind = Kind(typ % 1000)
	size := 8 * g.Dimensions()
	switch g.Kind {
	case Point:
		g.Coordinates = r.floats(nil, g.Dimensions())
	case LineString:
		g.Coordinates = r.floats(nil, r.count(size)*g.Dimensions())
	case Polygon:
		for range r.count(4) {
			ring := Geometry{Kind: LineString, HasZ: g.HasZ, HasM: g.HasM}
			ring.Coordinates = r.floats(nil, r.count(size)*g.Dimensions())
			g.Parts = append(g.Parts, ring)
		}
	case MultiPoint, MultiLineString, MultiPolygon, Collection:
		for range r.count(9) {
			if r.failed {
				break
			}
			part := r.geometry(depth + 1)
			// A multi-geometry is of one kind: MultiPoint of Points and so on.
			if g.Kind != Collection && part.Kind != g.Kind-3 {
				r.failed = true
			}
			g.Parts = append(g.Parts, part)
		}
	default:
		r.failed = true
	}
	return g
}

// GeoJSON writes g as GeoJSON, with Z but without M.
func (g *Geometry) GeoJSON() string { return string(g.appendGeoJSON(nil)) }

func (g *Geometry) appendGeoJSON(dst []byte) []byte {
	dst = append(dst, `{"type":"`...)
	dst = append(dst, names[g.Kind]...)
	if g.Kind == Collection {
		dst = append(dst, `","geometries":[`...)
		for i := range g.Parts {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = g.Parts[i].appendGeoJSON(dst)
		}
		return append(dst, ']', '}')
	}
	dst = append(dst, `","coordinates":`...)
	return append(g.appendCoordinates(dst), '}')
}

func (g *Geometry) appendCoordinates(dst []byte) []byte {
	if g.Kind == Point {
		return g.appendPoint(dst, 0)
	}
	dst = append(dst, '[')
	if g.Kind == LineString {
		for i := 0; i < len(g.Coordinates); i += g.Dimensions() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = g.appendPoint(dst, i)
		}
		return append(dst, ']')
	}
	for i := range g.Parts {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = g.Parts[i].appendCoordinates(dst)
	}
	return append(dst, ']')
}

func (g *Geometry) appendPoint(dst []byte, i int) []byte {
	n := 2
	if g.HasZ {
		n = 3
	}
	dst = append(dst, '[')
	for j, f := range g.Coordinates[i : i+n] {
		if j > 0 {
			dst = append(dst, ',')
		}
		dst = model.AppendJSONReal(dst, f)
	}
	return append(dst, ']')
}

// WKT writes g as well-known text.
func (g *Geometry) WKT() string { return string(g.appendWKT(nil)) }

func (g *Geometry) appendWKT(dst []byte) []byte {
	dst = append(dst, strings.ToUpper(names[g.Kind])...)
	switch {
	case g.HasZ && g.HasM:
		dst = append(dst, " ZM"...)
	case g.HasZ:
		dst = append(dst, " Z"...)
	case g.HasM:
		dst = append(dst, " M"...)
	}
	if g.empty() {
		return append(dst, " EMPTY"...)
	}
	if g.HasZ || g.HasM {
		dst = append(dst, ' ')
	}
	if g.Kind != Collection {
		return g.appendText(dst)
	}
	dst = append(dst, '(')
	for i := range g.Parts {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = g.Parts[i].appendWKT(dst)
	}
	return append(dst, ')')
}

func (g *Geometry) empty() bool { return len(g.Coordinates) == 0 && len(g.Parts) == 0 }

// appendText appends what stands in parentheses, with them.
func (g *Geometry) appendText(dst []byte) []byte {
	dst = append(dst, '(')
	for i := 0; i < len(g.Coordinates); i++ {
		if i > 0 && i%g.Dimensions() == 0 {
			dst = append(dst, ',')
		} else if i > 0 {
			dst = append(dst, ' ')
		}
		dst = model.AppendReal(dst, g.Coordinates[i])
	}
	for i := range g.Parts {
		if i > 0 {
			dst = append(dst, ',')
		}
		part := g.Parts[i].appendText(nil)
		if g.Kind == MultiPoint { // MULTIPOINT(1 2,3 4)
			part = part[1 : len(part)-1]
		}
		dst = append(dst, part...)
	}
	return append(dst, ')')
}
