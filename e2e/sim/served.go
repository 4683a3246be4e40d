package sim

import (
	"fmt"
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
}

// servings are a config of a stream itself and others in its place.
func servings(id model.StreamID, config string) []*served {
	all := []*served{{name: "all", plan: compile(id, config)}}
	add := func(name, text, without string) {
		over, ok := compile(id, text).Over(all[0].plan)
		if !ok {
			panic(fmt.Sprintf("the sync config %s needs more than there is", name))
		}
		all = append(all, &served{name, over, without})
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

// gives tells whether clients are given the bucket.
func (s *served) gives(stream model.StreamID, bucket string) bool {
	return s.without == "" || !strings.HasPrefix(bucket, fmt.Sprintf("%d#%s[", stream, s.without))
}

// serve deploys another config that needs nothing new. Gateways learn of it one
// by one, and end the streams of the one before.
func (w *stream) serve() {
	w.served = w.config.servings[w.rnd.IntN(len(w.config.servings))]
	w.logf("clients are served by %s", w.served.name)
	w.count("configs served")
}
