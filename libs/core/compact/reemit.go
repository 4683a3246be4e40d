package compact

import (
	"slices"

	"github.com/sluicesync/sluice/libs/model"
)

// maxReemit is how many rows a plan names at most to be put again.
const maxReemit = 1000

// stand notes a row whose newest op is a PUT.
func (p *Plan) stand(r row, id model.OpID) {
	if len(p.standing) >= 2*maxReemit {
		p.standing = slices.Delete(p.standing, 0, maxReemit)
	}
	p.standing = append(p.standing, standing{r, id, p.run})
}

// Reemit returns the PUTs, oldest first, that are worth to be put again, and how
// many dead ops that frees. Call it after the oldest op. Where memory has not
// sufficed to know which PUTs stand, there are none. A row that shares its type
// and id with another is left alone, and all that are newer: which of them a
// client shows depends on their order.
func (p *Plan) Reemit() (ops []model.OpID, freed int) {
	if p.untracked > 0 {
		return nil, 0
	}
	list := slices.Clone(p.standing[max(0, len(p.standing)-maxReemit):])
	slices.Reverse(list)
	list, _ = p.choose(list)
	list, freed = p.choose(list[:p.shared(list)])
	for _, s := range list {
		ops = append(ops, s.id)
	}
	return ops, freed
}

// choose returns as many of rows, oldest first, as free the most ops that are
// worth it.
func (p *Plan) choose(rows []standing) (chosen []standing, freed int) {
	best, gain, dead := 0, 0, 0
	for i, s := range rows {
		dead += s.dead
		if g := dead - p.limits.Worth*(i+1); g > gain {
			best, gain, freed = i+1, g, dead
		}
	}
	return rows[:best], freed
}

// shared is the first of rows whose type and id another row of the bucket has;
// len(rows) if none.
func (p *Plan) shared(rows []standing) int {
	type object struct{ objectType, objectID string }
	first := make(map[object]int, len(rows))
	for i := len(rows) - 1; i >= 0; i-- {
		first[object{rows[i].objectType, rows[i].objectID}] = i
	}
	at := len(rows)
	for k := range p.seen {
		if i, ok := first[object{k.objectType, k.objectID}]; ok && rows[i].key != k.key {
			at = min(at, i)
		}
	}
	return at
}
