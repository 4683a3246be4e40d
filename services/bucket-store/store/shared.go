package store

import (
	"context"
	"errors"

	"github.com/sluicesync/sluice/libs/model"
)

// Shared is a store that several processes have open at once. All of them read;
// one of them, the owner, writes (storetest.RunShared).
//
// Each owner has a greater epoch than the one before it, and everything that is
// written is checked against it in the transaction that commits: whoever is not
// the owner gets ErrNotOwner and has changed nothing, however long it was
// stalled since it was one (D5). A process that never was the owner gets it too.
//
// What an owner was told is durable, every process reads from then on.
type Shared interface {
	Store
	// Own waits until this process is the owner, which the others find at
	// address. waits is called with the reason of each wait: ErrOwned if another
	// process is the owner. The only other error is ctx's.
	//
	// An owner that goes without a word is replaced within 4 s; one that
	// releases, within half a second.
	Own(ctx context.Context, address string, waits func(reason error)) (Owner, error)
	// Overview is what a process that does not write looks at several times a
	// second: it costs one short read.
	Overview(ctx context.Context) (Overview, error)
}

// Owner is the right to be the one process that writes.
type Owner interface {
	// Keep renews the right until ctx ends (nil) or another process has it
	// (ErrNotOwner). While the storage cannot be reached it goes on trying.
	Keep(ctx context.Context) error
	// Release gives the right back, so that another process need not wait for
	// its end. Nothing may be written any more.
	Release() error
}

// Overview of a shared store at one moment.
type Overview struct {
	// Epoch is the owner's. 0 = there was none yet.
	Epoch uint64
	// Address is the owner's; "" = there is none now, or it has none.
	Address string
	// Owned: the owner has renewed its right in time.
	Owned bool
	// Catalog differs whenever Streams would return other streams, states or
	// configs than before; heads do not count.
	Catalog uint64
	// Heads of all streams that are not terminated.
	Heads map[model.StreamID]model.StreamHead
}

var (
	// ErrOwned: another process is the owner.
	ErrOwned = errors.New("another bucket-store is the one that writes to this storage")
	// ErrNotOwner: this process is not, or not any more, the owner.
	ErrNotOwner = errors.New("this bucket-store is not the one that writes to the storage")
)
