package memory_test

import (
	"testing"

	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/memory"
	"github.com/sluicesync/sluice/services/bucket-store/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Instance {
		s := memory.New()
		return storetest.Instance{Store: s, Reopen: func() store.Store { return s }}
	})
}
