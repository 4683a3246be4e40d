package postgres

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
)

// kind says how the text form of a type becomes a SQLite value.
type kind uint8

const (
	kindText kind = iota // as it is: also every type not named below
	kindInteger
	kindReal
	kindBool
	kindBytes
	kindDate
	kindTimestamp
	kindTimestampTZ
	kindTime
	kindJSON
	kindLSN
	kindArray
	kindDomain
	kindComposite
	kindRange
	kindMultirange
)

// pgType is a Postgres type, as far as its text form matters.
type pgType struct {
	oid  uint32
	kind kind
	// custom: decoded only with ValueOptions.CustomTypes, otherwise text.
	custom bool
	elem   *pgType          // of an array, domain, range, multirange
	delim  byte             // of an array of this type
	fields []compositeField // of a composite
}

type compositeField struct {
	name string
	typ  *pgType
}

// firstUserOID is the first oid that user-defined types can have.
const firstUserOID = 16384

var builtinKinds = map[uint32]kind{
	20: kindInteger, 21: kindInteger, 23: kindInteger, 26: kindInteger,
	700: kindReal, 701: kindReal,
	16: kindBool, 17: kindBytes,
	1082: kindDate, 1114: kindTimestamp, 1184: kindTimestampTZ, 1083: kindTime,
	114: kindJSON, 3802: kindJSON, 3220: kindLSN,
}

// builtinArrays maps array types to their elements.
var builtinArrays = map[uint32]uint32{
	143: 142, 199: 114, 629: 628, 651: 650, 719: 718, 775: 774, 791: 790, 1000: 16, 1001: 17, 1002: 18, 1003: 19,
	1005: 21, 1006: 22, 1007: 23, 1008: 24, 1009: 25, 1010: 27, 1011: 28, 1012: 29, 1013: 30, 1014: 1042, 1015: 1043,
	1016: 20, 1017: 600, 1018: 601, 1019: 602, 1020: 603, 1021: 700, 1022: 701, 1027: 604, 1028: 26, 1040: 829, 1041: 869,
	1115: 1114, 1182: 1082, 1183: 1083, 1185: 1184, 1187: 1186, 1231: 1700, 1270: 1266, 1561: 1560, 1563: 1562,
	2201: 1790, 2207: 2202, 2208: 2203, 2209: 2204, 2210: 2205, 2211: 2206, 2949: 2970, 2951: 2950, 3221: 3220,
	3643: 3614, 3644: 3642, 3645: 3615, 3735: 3734, 3770: 3769, 3807: 3802, 3905: 3904, 3907: 3906, 3909: 3908,
	3911: 3910, 3913: 3912, 3927: 3926, 4073: 4072, 4090: 4089, 4097: 4096, 4192: 4191, 5039: 5038,
	6150: 4451, 6151: 4532, 6152: 4533, 6153: 4534, 6155: 4535, 6157: 4536,
}

var builtins = func() map[uint32]*pgType {
	m := map[uint32]*pgType{}
	for oid, k := range builtinKinds {
		m[oid] = &pgType{oid: oid, kind: k, delim: ','}
	}
	for array, elem := range builtinArrays {
		e := m[elem]
		if e == nil {
			e = &pgType{oid: elem, delim: ','}
			if elem == 603 { // box
				e.delim = ';'
			}
			m[elem] = e
		}
		m[array] = &pgType{oid: array, kind: kindArray, elem: e, delim: ','}
	}
	return m
}()

// types looks up types by oid and keeps what it has found. It is safe for
// concurrent use.
type types struct {
	mu     sync.Mutex
	custom map[uint32]*pgType // guarded by mu
}

// forget drops what is known of user-defined types: they may have changed.
func (t *types) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.custom = nil
}

// querier is what a lookup needs of a connection.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// get returns the types of oids, in their order; q is used for types that are
// neither built in nor known.
func (t *types) get(ctx context.Context, q querier, oids []uint32) ([]*pgType, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(ctx, q, oids); err != nil {
		return nil, err
	}
	found := make([]*pgType, len(oids))
	for i, oid := range oids {
		found[i] = t.known(oid)
	}
	return found, nil
}

func (t *types) known(oid uint32) *pgType {
	if b := builtins[oid]; b != nil {
		return b
	}
	if c := t.custom[oid]; c != nil {
		return c
	}
	return &pgType{oid: oid, delim: ','}
}

const typesQuery = `SELECT t.oid, t.typtype::text, t.typcategory::text, t.typdelim::text,
  CASE WHEN t.typtype = 'd' THEN t.typbasetype WHEN t.typtype = 'r' THEN coalesce((SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid), 0)
       WHEN t.typelem <> 0 AND t.typlen = -1 AND t.typcategory = 'A' THEN t.typelem ELSE 0 END::oid,
  coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped), '{}'),
  coalesce((SELECT array_agg(a.atttypid::oid ORDER BY a.attnum) FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped), '{}')
FROM pg_type t WHERE t.oid = ANY($1::oid[])`

// multirangeQuery is separate since multiranges came with version 14.
const multirangeQuery = `SELECT rngmultitypid, rngtypid FROM pg_range WHERE rngmultitypid = ANY($1::oid[])`

func (t *types) load(ctx context.Context, q querier, oids []uint32) error {
	for {
		var missing []uint32
		for _, oid := range oids {
			if oid >= firstUserOID && t.custom[oid] == nil {
				missing = append(missing, oid)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		rows, err := q.Query(ctx, typesQuery, missing)
		if err != nil {
			return fmt.Errorf("look up types: %w", err)
		}
		type found struct {
			pgType
			elem   uint32
			names  []string
			fields []uint32
		}
		var all []found
		var multiranges []uint32
		for rows.Next() {
			var f found
			var typtype, category, delim string
			if err := rows.Scan(&f.oid, &typtype, &category, &delim, &f.elem, &f.names, &f.fields); err != nil {
				rows.Close()
				return fmt.Errorf("look up types: %w", err)
			}
			f.custom, f.pgType.delim = true, delim[0]
			switch typtype {
			case "d":
				f.kind = kindDomain
			case "c":
				f.kind = kindComposite
			case "r":
				f.kind = kindRange
			case "m":
				f.kind = kindMultirange
				multiranges = append(multiranges, f.oid)
			default:
				if category == "A" && f.elem != 0 {
					f.kind = kindArray
				}
			}
			all = append(all, f)
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("look up types: %w", err)
		}
		if len(multiranges) > 0 {
			ranges := map[uint32]uint32{}
			rows, err := q.Query(ctx, multirangeQuery, multiranges)
			if err != nil {
				return fmt.Errorf("look up multiranges: %w", err)
			}
			for rows.Next() {
				var multi, single uint32
				if err := rows.Scan(&multi, &single); err != nil {
					rows.Close()
					return fmt.Errorf("look up multiranges: %w", err)
				}
				ranges[multi] = single
			}
			if err := rows.Err(); err != nil {
				return fmt.Errorf("look up multiranges: %w", err)
			}
			for i := range all {
				if all[i].kind == kindMultirange {
					all[i].elem = ranges[all[i].oid]
				}
			}
		}
		// Parts first: a type's parts are complete before the type is known.
		// SQL types cannot contain themselves.
		var parts []uint32
		for _, f := range all {
			if f.elem != 0 {
				parts = append(parts, f.elem)
			}
			parts = append(parts, f.fields...)
		}
		if err := t.load(ctx, q, parts); err != nil {
			return err
		}
		if t.custom == nil {
			t.custom = map[uint32]*pgType{}
		}
		for _, f := range all {
			typ := f.pgType
			if f.elem != 0 {
				typ.elem = t.known(f.elem)
				// A range whose bounds are of a built-in type is custom even so.
			}
			for i, name := range f.names {
				typ.fields = append(typ.fields, compositeField{name: name, typ: t.known(f.fields[i])})
			}
			t.custom[f.oid] = &typ
		}
		for _, oid := range missing { // dropped meanwhile: text
			if t.custom[oid] == nil {
				t.custom[oid] = &pgType{oid: oid, delim: ','}
			}
		}
	}
}
