package writer

import (
	"context"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// relog is a ledger.Relog and who waits for its answer.
type relog struct {
	ledger.Relog
	done chan ledger.Relogged // 1
}

// Relog begins another log of the stream, unless it is refused.
func (w *Writer) Relog(ctx context.Context, epoch model.Epoch, otherHistory bool) (refused string, err error) {
	m := &relog{ledger.Relog{Epoch: epoch, OtherHistory: otherHistory}, make(chan ledger.Relogged, 1)}
	if err := w.send(ctx, m); err != nil {
		return "", err
	}
	select {
	case a := <-m.done:
		return a.Refused, nil
	case <-ctx.Done():
		return "", ctx.Err()
	case <-w.hub.ctx.Done():
		return "", w.hub.ctx.Err()
	}
}

// begun: from now on write checkpoints are of the era of the stream's log.
func (h *Hub) begun(w *Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.era = max(h.era, w.era+w.ledger.Head().Applied.Position.Histories())
}
