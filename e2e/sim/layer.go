package sim

import (
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// add deploys a config that needs more than the active stream has: the next session
// of a replicator copies that as a layer, and clients are served by it when all
// layers are copied. What was to be served before is given up.
func (w *World) add() {
	st := w.in(model.Active)
	if st == nil {
		return
	}
	if st.layers < maxLayers && (st.layers == int(st.layered) || w.rnd.IntN(2) == 0) {
		st.layers++
		w.count("layers added")
	} else if st.layers == int(st.layered) {
		return
	}
	st.adding = true
	w.logf("clients of stream %d are to be served by %d layers, of which %d are copied", st.id, st.layers, st.layered)
	c := st.edit()
	if next := w.in(model.Processing); next != nil {
		w.count("deploys over a deploy")
		c.States = map[model.StreamID]model.StreamState{next.id: model.Stopped}
	}
	w.change(c, 0)
}

// withdraw gives up what was to be served when all layers are copied. They are
// copied nevertheless.
func (w *stream) withdraw() {
	if !w.adding {
		return
	}
	w.adding = false
	w.count("layers withdrawn")
	w.change(w.edit(), 0)
}

// edit stores the layers, and by what clients are to be served.
func (w *stream) edit() store.Change {
	var e store.Edit
	for i := range w.layers {
		e.Layers = append(e.Layers, model.Layer{Config: with(configs[w.variant], i+1)})
	}
	if w.adding {
		e.Next = e.Layers[w.layers-1].Config
	}
	return store.Change{Edited: map[model.StreamID]store.Edit{w.id: e}}
}

// layersCopied: a commit has said that the layers up to n are copied, 0 = nothing.
func (w *stream) layersCopied(n uint32) {
	if n <= w.layered {
		return
	}
	w.layered = n
	streams, err := w.store.Streams(w.ctx)
	w.must(err, "streams")
	st := &streams[slices.IndexFunc(streams, func(s model.Stream) bool { return s.ID == w.id })]
	if st.Layered != n || st.Next != "" != (w.adding && int(n) < w.layers) {
		w.failf("%d of %d layers are copied, the store has %d, and will serve %q", n, w.layers, st.Layered, st.Next)
	}
	w.count("layers copied")
	w.logf("layer %d is copied", n)
	if w.adding && int(n) == w.layers {
		w.adding, w.served = false, w.config.added[n-1]
		w.logf("clients are served by %s", w.served.name)
	}
}

// visible tells whether readers may see a bucket: not while its layer is copied.
func (w *stream) visible(bucket string) bool {
	for i := int(w.layered); i < maxLayers; i++ {
		if strings.HasPrefix(bucket, addedPrefix(w.id, i+1)) {
			return false
		}
	}
	return true
}

// outdated tells whether the replicator has not heard of a layer yet.
func (r *replicator) outdated() bool { return int(r.layers) < r.w.layers }
