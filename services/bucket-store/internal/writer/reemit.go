package writer

import (
	"context"

	"github.com/sluicesync/sluice/libs/core/ledger"
)

// reemission is a ledger.Reemit and who waits for its answer.
type reemission struct {
	ledger.Reemit
	done chan ledger.Reemitted // 1
}

// Reemit hands in r, whose ticket the writer gives, and waits for the answer.
func (w *Writer) Reemit(ctx context.Context, r ledger.Reemit) (ledger.Reemitted, error) {
	m := &reemission{r, make(chan ledger.Reemitted, 1)}
	if err := w.send(ctx, m); err != nil {
		return ledger.Reemitted{}, err
	}
	select {
	case a := <-m.done:
		return a, nil
	case <-ctx.Done():
		return ledger.Reemitted{}, ctx.Err()
	case <-w.hub.ctx.Done():
		return ledger.Reemitted{}, w.hub.ctx.Err()
	}
}
