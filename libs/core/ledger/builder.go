package ledger

import (
	"slices"

	"github.com/sluicesync/sluice/libs/model"
)

// builder makes a Commit of rows, keeping the state of each row it has seen,
// so that several changes of one row in one commit see one another.
type builder struct {
	op  model.OpID // last one used
	log uint32     // that the changes are of

	index map[model.RowKey]int // into rows
	rows  []rowState
	keys  []model.RowKey // asked for by want, to be told by know
	first int            // index in rows of the first of keys

	bucketIndex map[string]int // into buckets
	buckets     []BucketChange
	ops         []BucketOp
	entries     []EntryWrite
	gone        []RowRange
	writes      []RowWrite
	memberships []Membership // backs the records made here
	subkey      []byte
}

type rowState struct {
	key    model.RowKey
	record *Record // nil = not known
	dirty  bool
}

func (b *builder) init() {
	b.index = map[model.RowKey]int{}
	b.bucketIndex = map[string]int{}
}

// reset forgets everything but its memory; op is the last op id used.
func (b *builder) reset(op model.OpID) {
	const keep = 1 << 16 // entries; a map's memory never shrinks by itself
	if len(b.index) > keep || len(b.bucketIndex) > keep {
		*b = builder{log: b.log}
		b.init()
	}
	b.op = op
	clear(b.index)
	clear(b.bucketIndex)
	clear(b.rows)
	clear(b.buckets)
	clear(b.ops)
	clear(b.entries)
	clear(b.writes)
	b.rows, b.keys = b.rows[:0], b.keys[:0]
	b.buckets, b.ops, b.entries, b.gone, b.writes = b.buckets[:0], b.ops[:0], b.entries[:0], b.gone[:0], b.writes[:0]
	b.memberships = nil // may live on in an observer of the commit
	b.first = 0
}

// want notes that the record of key is needed.
func (b *builder) want(keys []model.RowKey, key model.RowKey) []model.RowKey {
	if _, ok := b.index[key]; ok {
		return keys
	}
	if len(keys) == 0 {
		b.first = len(b.rows)
	}
	b.index[key] = len(b.rows)
	b.rows = append(b.rows, rowState{key: key})
	return append(keys, key)
}

// know takes the records of the keys wanted.
func (b *builder) know(records []*Record) {
	for i, r := range records {
		b.rows[b.first+i].record = r
	}
	b.keys = b.keys[:0]
}

// truncate removes the next rows of a table, those after a row, and returns how
// many it has taken: as many as make at most limit ops, but one. Nothing else of
// the table may be in the commit yet.
func (b *builder) truncate(table model.TableID, after model.RowID, rows []KeyedRecord, limit int) (taken int) {
	for ; taken < len(rows) && (taken == 0 || len(b.ops)+len(b.entries) < limit); taken++ {
		r := &rows[taken]
		b.leave(r.Key, r.Record)
		// It is known to be gone: a put that follows need not ask.
		b.index[r.Key] = len(b.rows)
		b.rows = append(b.rows, rowState{key: r.Key})
	}
	if taken > 0 {
		b.gone = append(b.gone, RowRange{Table: table, After: after, UpTo: rows[taken-1].Key.Row})
	}
	return taken
}

// sweep removes those of the next rows of a table that are known from an earlier
// log only, and returns how many it has looked at: limit as for truncate.
func (b *builder) sweep(rows []KeyedRecord, limit int) (taken int) {
	for ; taken < len(rows) && (taken == 0 || len(b.ops)+len(b.entries) < limit); taken++ {
		r := &rows[taken]
		if r.Record.Log >= b.log {
			continue
		}
		b.leave(r.Key, r.Record)
		b.index[r.Key] = len(b.rows)
		b.rows = append(b.rows, rowState{key: r.Key, dirty: true})
	}
	return taken
}

// touches tells whether a row of the table was seen.
func (b *builder) touches(table model.TableID) bool {
	for i := range b.rows {
		if b.rows[i].key.Table == table {
			return true
		}
	}
	return false
}

// row applies one change.
func (b *builder) row(r *model.EvaluatedRow) {
	if r.Before != nil && *r.Before != r.Key.Row {
		b.remove(model.RowKey{Table: r.Key.Table, Row: *r.Before})
	}
	switch r.Kind {
	case model.RowDelete:
		b.remove(r.Key)
	case model.RowSnapshot:
		if s := &b.rows[b.index[r.Key]]; s.record == nil || s.record.Log < b.log {
			b.put(r)
		}
	case model.RowPut:
		b.put(r)
	case model.RowLayer:
		b.putBeside(r)
	default:
		panic("ledger: unknown kind of row")
	}
}

// put makes the row's puts and lookups the only ones of its key. REMOVEs come
// first: where the same object leaves and enters a bucket under two ids, the
// newest op is a PUT. A row that is copied again has no ops if its puts are those
// that are stored.
func (b *builder) put(r *model.EvaluatedRow) {
	s := &b.rows[b.index[r.Key]]
	old := s.record
	digest := digestOf(r.Puts)
	same := r.Kind == model.RowSnapshot && old != nil && old.Digest == digest && digest != 0
	if old != nil {
		var removed model.Checksum
		summed := false
		for i := range old.Buckets {
			m := &old.Buckets[i]
			if !slices.ContainsFunc(r.Puts, func(p model.Put) bool {
				return p.Bucket == m.Bucket && p.ObjectID == m.ObjectID && p.ObjectType == m.ObjectType
			}) {
				if !summed {
					removed, summed = b.removeChecksum(r.Key), true
				}
				b.add(m.Bucket, model.Op{Kind: model.OpRemove, Checksum: removed, Key: r.Key, ObjectType: m.ObjectType, ObjectID: m.ObjectID})
			}
		}
		for _, e := range old.Lookups {
			if !slices.ContainsFunc(r.Lookups, func(n model.ParameterEntry) bool { return n.Lookup == e.Lookup }) {
				b.entry(r.Key, e.Lookup, "")
			}
		}
	}
	start := len(b.memberships)
	for i := range r.Puts {
		p := &r.Puts[i]
		if !same {
			b.add(p.Bucket, model.Op{Kind: model.OpPut, Checksum: p.Checksum, Key: r.Key, ObjectType: p.ObjectType, ObjectID: p.ObjectID, Data: p.Data})
		}
		b.memberships = append(b.memberships, Membership{p.Bucket, p.ObjectType, p.ObjectID})
	}
	for _, e := range r.Lookups {
		// An unchanged entry is not written again: it would wake its readers.
		if old == nil || !slices.Contains(old.Lookups, e) {
			b.entry(r.Key, e.Lookup, e.Values)
		}
	}
	s.record = &Record{Buckets: slices.Clip(b.memberships[start:]), Lookups: r.Lookups, Source: r.Source, Log: b.log, Digest: digest}
	s.dirty = true
}

// putBeside adds the row's puts and lookups to what is known of its key. What is
// there is not put again: a change that made another version of it comes yet. Nor
// is the row known from this log by it: that change, or its copy, says the rest.
func (b *builder) putBeside(r *model.EvaluatedRow) {
	s := &b.rows[b.index[r.Key]]
	record := &Record{Source: r.Source}
	if s.record != nil {
		*record = *s.record
	}
	buckets, lookups := len(record.Buckets), len(record.Lookups)
	digested := buckets == 0 || record.Digest != 0
	record.Buckets, record.Lookups = slices.Clip(record.Buckets), slices.Clip(record.Lookups)
	for i := range r.Puts {
		p := &r.Puts[i]
		m := Membership{p.Bucket, p.ObjectType, p.ObjectID}
		if slices.Contains(record.Buckets, m) {
			continue
		}
		b.add(p.Bucket, model.Op{Kind: model.OpPut, Checksum: p.Checksum, Key: r.Key, ObjectType: p.ObjectType, ObjectID: p.ObjectID, Data: p.Data})
		record.Buckets = append(record.Buckets, m)
		if digested {
			record.Digest += digestOf(r.Puts[i : i+1])
		}
	}
	for _, e := range r.Lookups {
		if !slices.ContainsFunc(record.Lookups, func(known model.ParameterEntry) bool { return known.Lookup == e.Lookup }) {
			b.entry(r.Key, e.Lookup, e.Values)
			record.Lookups = append(record.Lookups, e)
		}
	}
	if s.record == nil || len(record.Buckets) > buckets || len(record.Lookups) > lookups {
		s.record, s.dirty = record, true
	}
}

// remove takes the row out of all its buckets and lookups and forgets it.
func (b *builder) remove(key model.RowKey) {
	s := &b.rows[b.index[key]]
	if s.record == nil {
		return
	}
	b.leave(key, s.record)
	s.record = nil
	s.dirty = true
}

// leave takes a row out of all the buckets and lookups that it is in.
func (b *builder) leave(key model.RowKey, r *Record) {
	var removed model.Checksum
	if len(r.Buckets) > 0 {
		removed = b.removeChecksum(key)
	}
	for _, m := range r.Buckets {
		b.add(m.Bucket, model.Op{Kind: model.OpRemove, Checksum: removed, Key: key, ObjectType: m.ObjectType, ObjectID: m.ObjectID})
	}
	for _, e := range r.Lookups {
		b.entry(key, e.Lookup, "")
	}
}

func (b *builder) removeChecksum(key model.RowKey) model.Checksum {
	b.subkey = key.AppendSubkey(b.subkey[:0])
	return model.RemoveChecksum(string(b.subkey))
}

func (b *builder) add(bucket string, op model.Op) {
	b.op++
	op.ID = b.op
	i, ok := b.bucketIndex[bucket]
	if !ok {
		i = len(b.buckets)
		b.bucketIndex[bucket] = i
		b.buckets = append(b.buckets, BucketChange{Bucket: bucket, First: op.ID})
	}
	c := &b.buckets[i]
	c.Checksum += op.Checksum
	c.Count++
	c.Last = op.ID
	b.ops = append(b.ops, BucketOp{Bucket: i, Op: op})
}

func (b *builder) entry(key model.RowKey, lookup, values string) {
	b.op++
	b.entries = append(b.entries, EntryWrite{ID: b.op, Key: key, Lookup: lookup, Values: values})
}

// fill gives c what the builder has made. A row that came and went in the same
// commit is removed though it may never have been stored: harmless.
func (b *builder) fill(c *Commit) {
	for i := range b.rows {
		if s := &b.rows[i]; s.dirty {
			b.writes = append(b.writes, RowWrite{Key: s.key, Record: s.record})
		}
	}
	c.Buckets, c.Ops, c.Entries, c.Gone, c.Rows = b.buckets, b.ops, b.entries, b.gone, b.writes
}
