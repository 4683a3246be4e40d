package source

import "github.com/sluicesync/sluice/libs/model"

// valueChunk is how many values are allocated at once.
const valueChunk = 4096

// Rows collects changes with their values and texts in few allocations. What
// it holds is valid until Reset.
type Rows struct {
	Arena
	Changes []model.Change
	// Bytes is about the size of the changes, encoded.
	Bytes int
	// Limit is the size above which a change must not be added: what it is of
	// is removed instead (INV-13). 0 = MaxRow.
	Limit int

	values []model.Value   // the chunk being filled
	full   [][]model.Value // other chunks in use
	free   [][]model.Value
}

// Values returns n values to fill in, all Absent.
func (r *Rows) Values(n int) []model.Value {
	if cap(r.values)-len(r.values) < n {
		r.more(n)
	}
	at := len(r.values)
	r.values = r.values[:at+n]
	v := r.values[at : at+n : at+n]
	clear(v)
	return v
}

func (r *Rows) more(n int) {
	if cap(r.values) > 0 {
		r.full = append(r.full, r.values)
	}
	if last := len(r.free) - 1; last >= 0 && n <= valueChunk {
		r.values = r.free[last]
		r.free = r.free[:last]
		return
	}
	r.values = make([]model.Value, 0, max(n, valueChunk))
}

// MaxRow is the size above which a row is not replicated, whatever could carry
// it.
const MaxRow = 15_000_000

// TooLarge reports whether a change of about so many bytes must not be added.
func (r *Rows) TooLarge(bytes int) bool {
	if r.Limit > 0 && r.Limit < MaxRow {
		return bytes > r.Limit
	}
	return bytes > MaxRow
}

// Add adds a change of about so many bytes.
func (r *Rows) Add(c model.Change, bytes int) {
	r.Changes = append(r.Changes, c)
	r.Bytes += bytes
}

// Reset forgets everything and keeps some memory for the next rows.
func (r *Rows) Reset() {
	r.Arena.Reset()
	r.Changes = r.Changes[:0]
	r.Bytes = 0
	if cap(r.values) > 0 {
		r.full = append(r.full, r.values)
		r.values = nil
	}
	for _, c := range r.full {
		if cap(c) == valueChunk && len(r.free) < 16 {
			r.free = append(r.free, c[:0])
		}
	}
	clear(r.full)
	r.full = r.full[:0]
}
