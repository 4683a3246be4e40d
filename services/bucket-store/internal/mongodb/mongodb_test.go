package mongodb

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/services/bucket-store/internal/mongotest"
	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// opened is a store that this process owns.
type opened struct {
	*Store
	owner store.Owner
}

// Close gives the storage back before.
func (o *opened) Close() error {
	if err := o.owner.Release(); err != nil {
		return err
	}
	return o.Store.Close()
}

func open(t testing.TB, c *config.MongoDB, o Options) *opened {
	t.Helper()
	s, err := Open(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := s.Own(t.Context(), "", func(reason error) { t.Logf("waiting for the storage: %v", reason) })
	if err != nil {
		t.Fatal(err)
	}
	return &opened{s, owner}
}

// breaker makes one command fail: the next that writes, before it is done, or the
// next that decides a step, when it is done.
func breaker(s *mongotest.Server) func(persisted bool) {
	return func(persisted bool) {
		var done atomic.Bool
		s.Intercept(func(c mongotest.Command) mongotest.Cut {
			switch {
			case persisted && c.Name != "findAndModify" || c.Name == "find" || c.Name == "getMore" || done.Swap(true):
				return mongotest.Done
			case persisted:
				return mongotest.Denied
			}
			return mongotest.Refused
		})
	}
}

// tiny: chunks of two ops, pages of one, batches of three documents, values in
// parts, and attempts that came to nothing soon forgotten.
var tiny = Options{chunkOps: 2, chunkBytes: 1, pageChunks: 1, pageOps: 1, batch: 3, partBytes: 1000, mergeRun: 2, abortedMax: 4}

func TestStore(t *testing.T) {
	server := mongotest.Start(t)
	n := 0
	for name, o := range map[string]Options{"": {}, "tiny": tiny} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Instance {
				for _, long := range []string{"/Meanwhile", "/LikeTheModel", "/ManyBuckets", "/LargeBucket", "/LargeRow", "/LargeTable"} {
					if name == "tiny" && strings.HasSuffix(t.Name(), long) {
						t.Skip("a read in many pages is ended by a compaction between them (TestPages), and takes long")
					}
				}
				n++
				c := server.Config(fmt.Sprint("store", n))
				s := open(t, c, o)
				t.Cleanup(func() {
					server.Intercept(nil)
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				})
				return storetest.Instance{Store: s, Small: name == "tiny", Survives: true, Break: breaker(server), Reopen: func() store.Store {
					server.Intercept(nil)
					if err := s.Close(); err != nil {
						t.Error(err)
					}
					s = open(t, c, o)
					return s
				}}
			})
		})
	}
}
