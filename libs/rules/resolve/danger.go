package resolve

import (
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/syntax"
)

// trust is what some values depend on: what the token says, and what the
// client says by itself.
type trust struct {
	token, client bool
	at            syntax.Span // the first of the client's values
}

func (t *trust) add(e *plan.Expr) {
	e.Walk(func(n *plan.Expr) {
		if n.Op != plan.Request {
			return
		}
		switch n.Name {
		case plan.Parameters, plan.SubscriptionArgs:
			if !t.client {
				t.client = true
				t.at = leafRef(n).at
			}
		default:
			t.token = true
		}
	})
}

// dangerous warns of a variant whose buckets the client chooses by itself: the
// values that name its buckets depend on what the client says, and nothing in
// them on what the token says. Conditions on the request count only if the
// buckets have no such values.
func (s *scope) dangerous(b branch, primary *source) {
	var keys, rest trust
	seen := map[*source]bool{}
	var follow func(e *plan.Expr)
	follow = func(e *plan.Expr) {
		keys.add(e)
		src := baseOf(e)
		if src == nil || src == requestSource || src == primary || seen[src] {
			return
		}
		seen[src] = true
		if src.each != nil {
			follow(src.each)
		}
		for _, t := range b.terms {
			if t.match() {
				if own, other, of := sides(t, src); own != nil && of != primary {
					follow(other)
				}
			}
		}
	}
	for _, t := range b.terms {
		if t.match() {
			if own, other, _ := sides(t, primary); own != nil {
				follow(other)
				continue
			}
			rest.add(t.x)
			rest.add(t.y)
			continue
		}
		rest.add(t.x)
	}
	found := keys
	if !keys.token && !keys.client {
		found = rest
	}
	if found.client && !found.token && !s.warned[found.at] {
		s.warned[found.at] = true
		s.warn("dangerous-parameters", found.at, "the client chooses the buckets by this value, and nothing restricts it to what its token allows")
	}
}
