package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// matches reports whether a pattern takes a table.
func matches(p model.TablePattern, schema, name string) bool {
	one := func(pattern, s string) bool {
		if prefix, ok := strings.CutSuffix(pattern, "%"); ok {
			return strings.HasPrefix(s, prefix)
		}
		return pattern == s
	}
	return p.Connection == model.DefaultConnection && one(p.Schema, schema) && one(p.Name, name)
}

func matchesAny(ps []model.TablePattern, schema, name string) bool {
	for _, p := range ps {
		if matches(p, schema, name) {
			return true
		}
	}
	return false
}

// table is what copying and decoding need of a source table besides its
// model.SourceTable.
type table struct {
	oid   uint32
	types []*pgType // by column
	// key are the columns by which it is copied, in the order of their index;
	// empty: it is copied in one go.
	key      []int
	keyTypes []string // SQL names of their types
	filter   string   // row filter of the publication
}

// tableID names an incarnation of a table: another oid, name or replica
// identity is another table (spec/04 §1.5).
func tableID(schema, name string, oid uint32, identity byte, columns []relationColumn) model.TableID {
	var b []byte
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	str("postgresql")
	str(model.DefaultConnection)
	str(schema)
	str(name)
	b = binary.BigEndian.AppendUint32(b, oid)
	b = append(b, identity)
	for _, c := range columns {
		if c.key {
			str(c.name)
			b = binary.BigEndian.AppendUint32(b, c.typeOID)
		}
	}
	return model.TableID(model.UUID5(b))
}

// sourceTable is a relation in the words of the field.
func (r *relation) sourceTable() model.SourceTable {
	t := model.SourceTable{
		ID: tableID(r.schema, r.name, r.oid, r.identity, r.columns), Connection: model.DefaultConnection, Schema: r.schema, Name: r.name,
		Columns: make([]model.Column, len(r.columns)), CompleteRows: r.identity == 'f',
	}
	for i, c := range r.columns {
		t.Columns[i] = model.Column{Name: c.name, Type: strconv.FormatUint(uint64(c.typeOID), 10), Key: c.key}
	}
	return t
}

// adopt gives t the id that is stored of it, if it differs from what is stored
// only by its oid: as where its database was loaded from a dump, and is compared
// now (nothing is copied yet), or has been (the place has the oid).
func adopt(known map[model.TableID]*model.TableProgress, t *model.SourceTable, oid uint32) {
	is := func(p *model.TableProgress) bool { return p != nil && !bytes.Equal(p.LastKey, source.Dropped) }
	if is(known[t.ID]) {
		return
	}
	other := func(c model.Column) bool { return !c.Key }
	for id, p := range known {
		if !is(p) || p.Table.Schema != t.Schema || p.Table.Name != t.Name || p.Table.CompleteRows != t.CompleteRows {
			continue
		}
		if was, _, ok := parsePlace(p.LastKey); len(p.LastKey) > 0 && (!ok || was != oid) {
			continue
		}
		if slices.Equal(slices.DeleteFunc(slices.Clone(p.Table.Columns), other), slices.DeleteFunc(slices.Clone(t.Columns), other)) {
			t.ID = id
			return
		}
	}
}

// place encodes how far a table is copied: its oid, then the texts of the key
// of the last row, if any.
func place(oid uint32, key [][]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, oid)
	for _, k := range key {
		b = binary.AppendUvarint(b, uint64(len(k)))
		b = append(b, k...)
	}
	return b
}

// parsePlace is the inverse of place; ok is false for other bytes.
func parsePlace(b []byte) (oid uint32, key []string, ok bool) {
	if len(b) < 4 {
		return 0, nil, false
	}
	oid = binary.BigEndian.Uint32(b)
	for b = b[4:]; len(b) > 0; {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			return 0, nil, false
		}
		key = append(key, string(b[size:size+int(n)]))
		b = b[size+int(n):]
	}
	return oid, key, true
}

// gone returns the known tables that r replaces: of the same name or the same
// oid, but another incarnation.
func gone(known map[model.TableID]*model.TableProgress, id model.TableID, oid uint32, schema, name string) []*model.SourceTable {
	var out []*model.SourceTable
	for other, p := range known {
		if other == id || bytes.Equal(p.LastKey, source.Dropped) {
			continue
		}
		was, _, ok := parsePlace(p.LastKey)
		if ok && was == oid || p.Table.Schema == schema && p.Table.Name == name {
			out = append(out, &p.Table)
		}
	}
	return out
}

// tablesQuery lists the ordinary tables of a publication with their columns,
// as pgoutput sends them, and the index that gives the replica identity or
// else the primary key. Formatted with what depends on the version.
const tablesQuery = `
SELECT c.oid, n.nspname::text, c.relname::text, c.relreplident::text, greatest(c.reltuples, 0)::int8,
  array_agg(a.attname::text ORDER BY a.attnum), array_agg(a.atttypid::oid ORDER BY a.attnum),
  array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum), array_agg(a.attnum::int4 ORDER BY a.attnum),
  coalesce((SELECT array_agg(k::int4 ORDER BY i) FROM unnest((SELECT x.indkey FROM pg_index x WHERE x.indrelid = c.oid AND x.indisvalid AND x.indimmediate
     AND CASE c.relreplident WHEN 'd' THEN x.indisprimary WHEN 'i' THEN x.indisreplident ELSE false END LIMIT 1)::int2[]) WITH ORDINALITY AS u(k, i)), '{}'),
  coalesce((SELECT array_agg(k::int4 ORDER BY i) FROM unnest((SELECT x.indkey FROM pg_index x WHERE x.indrelid = c.oid AND x.indisvalid AND x.indisprimary LIMIT 1)::int2[]) WITH ORDINALITY AS u(k, i)), '{}'),
  %s
FROM pg_publication_tables p
JOIN pg_namespace n ON n.nspname = p.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename AND c.relkind = 'r'
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped %s
WHERE p.pubname = $1 %s
GROUP BY c.oid, n.nspname, c.relname, c.relreplident, c.reltuples %s
ORDER BY c.reltuples DESC, n.nspname, c.relname`

// tables lists the tables of the publication that patterns take; the biggest
// first. If oid is not 0, only that one.
func (s *Source) tables(ctx context.Context, patterns []model.TablePattern, oid uint32) ([]source.Table, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogTime)
	defer cancel()
	version, err := s.serverVersion(ctx)
	if err != nil {
		return nil, err
	}
	filter, generated, lists, group := "''", "", "", ""
	if version >= 120000 && version < 180000 { // from then on some may be published, and attnames says which
		generated = "AND a.attgenerated = ''"
	}
	if version >= 150000 {
		filter, lists, group = "coalesce(p.rowfilter, '')", "AND a.attname = ANY(p.attnames)", ", p.rowfilter"
	}
	args := []any{publication}
	only := ""
	if oid != 0 {
		args = append(args, oid)
		only = "AND c.oid = $2"
	}
	rows, err := s.pool.Query(ctx, fmt.Sprintf(tablesQuery, filter, generated+" "+lists, only, group), args...)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	defer rows.Close()
	var out []source.Table
	for rows.Next() {
		var r relation
		var identity string
		var estimate int64
		var names, sqlTypes []string
		var oids []uint32
		var numbers, identityKey, primaryKey []int32
		t := &table{}
		if err := rows.Scan(&r.oid, &r.schema, &r.name, &identity, &estimate, &names, &oids, &sqlTypes, &numbers, &identityKey, &primaryKey, &t.filter); err != nil {
			return nil, fmt.Errorf("list tables: %w", err)
		}
		if oid == 0 && !matchesAny(patterns, r.schema, r.name) {
			continue
		}
		r.identity = identity[0]
		index := map[int32]int{}
		for i := range names {
			r.columns = append(r.columns, relationColumn{name: names[i], typeOID: oids[i], key: r.identity == 'f'})
			index[numbers[i]] = i
		}
		for _, n := range identityKey {
			if i, ok := index[n]; ok {
				r.columns[i].key = true
			}
		}
		if len(identityKey) == 0 {
			identityKey = primaryKey
		}
		t.oid = r.oid
		for _, n := range identityKey {
			i, ok := index[n]
			if !ok { // not published, or an expression
				t.key, t.keyTypes = nil, nil
				break
			}
			t.key = append(t.key, i)
			t.keyTypes = append(t.keyTypes, sqlTypes[i])
		}
		out = append(out, source.Table{SourceTable: r.sourceTable(), Estimate: uint64(estimate), Place: place(r.oid, nil), Private: t})
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	for i := range out {
		t := out[i].Private.(*table)
		if t.types, err = s.columnTypes(ctx, &out[i].SourceTable); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *Source) columnTypes(ctx context.Context, t *model.SourceTable) ([]*pgType, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogTime)
	defer cancel()
	oids := make([]uint32, len(t.Columns))
	for i, c := range t.Columns {
		oid, err := strconv.ParseUint(c.Type, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("type of %s.%s.%s: %w", t.Schema, t.Name, c.Name, err)
		}
		oids[i] = uint32(oid)
	}
	return s.types.get(ctx, s.pool, oids)
}
