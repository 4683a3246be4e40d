// Package lease says which replicator may open sessions of a stream.
//
// Leases live in memory: they keep two replicators from taking turns, and no
// more. What keeps a paused and revived writer from doing harm is the durable
// epoch that the store checks with every commit (D5). After a restart of
// bucket-store the holder goes on with its epoch (TestRestart).
package lease

import (
	"sync"
	"time"

	"github.com/sluicesync/sluice/libs/model"
)

// Table has the leases of all streams. It is safe for concurrent use.
type Table struct {
	now func() time.Time

	mu     sync.Mutex
	leases map[model.StreamID]lease // guarded by mu
}

type lease struct {
	holder  string
	epoch   model.Epoch // 0 while the session is being opened
	until   time.Time
	revoked bool // its epoch may not be renewed
}

// New returns an empty table that reads the time from now.
func New(now func() time.Time) *Table {
	return &Table{now: now, leases: map[model.StreamID]lease{}}
}

// Take gives the lease to holder for ttl unless another's is valid: then it
// returns false and the other.
func (t *Table) Take(id model.StreamID, holder string, ttl time.Duration) (other string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l, found := t.leases[id]; found && l.holder != holder && !l.revoked && t.now().Before(l.until) {
		return l.holder, false
	}
	t.leases[id] = lease{holder: holder, until: t.now().Add(ttl)}
	return "", true
}

// Opened notes the epoch that the holder got after Take.
func (t *Table) Opened(id model.StreamID, holder string, epoch model.Epoch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.leases[id]; l.holder == holder && epoch > l.epoch {
		l.epoch = epoch
		t.leases[id] = l
	}
}

// Renew extends the lease of holder with epoch; current is the stream's epoch.
// It tells whether the holder still has it.
func (t *Table) Renew(id model.StreamID, holder string, epoch, current model.Epoch, ttl time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if epoch != current {
		return false
	}
	// Without a lease this process is new, and the epoch says that the holder
	// was the last one.
	if l, found := t.leases[id]; found && (l.holder != holder || l.epoch != epoch || l.revoked) {
		return false
	}
	t.leases[id] = lease{holder: holder, epoch: epoch, until: t.now().Add(ttl)}
	return true
}

// Release gives the lease back, if holder has it with that epoch (0: any).
func (t *Table) Release(id model.StreamID, holder string, epoch model.Epoch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l, found := t.leases[id]; found && l.holder == holder && (epoch == 0 || l.epoch == epoch) {
		// Kept as revoked: the session is over, and its epoch with it.
		l.revoked = true
		t.leases[id] = l
	}
}

// Revoke ends the lease of an epoch, whoever holds it.
func (t *Table) Revoke(id model.StreamID, epoch model.Epoch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l, found := t.leases[id]; !found || l.epoch <= epoch {
		l.epoch, l.revoked = epoch, true
		t.leases[id] = l
	}
}
