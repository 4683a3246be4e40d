package sim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
)

// served is a sync config by which clients are served. All of them need no more
// than what is replicated.
type served struct {
	name string
	plan *rules.Plan
	// without is the definition that it has not, "" = it has them all.
	without string
	layers  int // of additions, that it has
}

// servings are a config of a stream itself and others in its place.
func servings(id model.StreamID, config string) []*served {
	all := []*served{{name: "all", plan: compile(id, config, 0)}}
	add := func(name, text, without string) {
		all = append(all, &served{name: name, plan: over(compile(id, text, 0), name, all[0].plan), without: without})
	}
	for _, d := range []string{"global", "own", "list"} {
		var rest strings.Builder
		skip := false
		for line := range strings.Lines(config) {
			if !strings.HasPrefix(line, "   ") {
				skip = line == "  "+d+":\n"
			}
			if !skip {
				rest.WriteString(line)
			}
		}
		add("without "+d, rest.String(), d)
	}
	add("other priorities", strings.NewReplacer("priority: 1", "priority: 3", "priority: 3", "priority: 0").Replace(config), "")
	return all
}

// over is a config over what others make.
func over(p *rules.Plan, name string, others ...*rules.Plan) *rules.Plan {
	o, ok := p.Over(others...)
	if !ok {
		panic(fmt.Sprintf("the sync config %s needs more than there is", name))
	}
	return o
}

// gives tells whether clients are given the bucket.
func (s *served) gives(stream model.StreamID, bucket string) bool {
	return s.without == "" || !strings.HasPrefix(bucket, fmt.Sprintf("%d#%s[", stream, s.without))
}

// serve deploys another config that needs nothing new. Gateways learn of it one
// by one, and end the streams of the one before.
func (w *stream) serve() {
	all := slices.Concat(w.config.servings, w.config.added[:w.layered])
	w.withdraw()
	w.served = all[w.rnd.IntN(len(all))]
	w.logf("clients are served by %s", w.served.name)
	w.count("configs served")
}
