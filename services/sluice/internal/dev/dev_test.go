package dev

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waiting is a part that runs until it is stopped, and notes that in order.
func waiting(name string, order *[]string, err error) part {
	return part{name, func(ctx context.Context) error {
		<-ctx.Done()
		*order = append(*order, name) // one after the other: no lock needed
		return err
	}}
}

func TestStopOrder(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var order []string
	parts := []part{waiting("store", &order, nil), waiting("source", &order, nil), waiting("gateway", &order, nil)}
	cancel()
	if err := supervise(ctx, parts); err != nil {
		t.Error(err)
	}
	if !slices.Equal(order, []string{"gateway", "source", "store"}) {
		t.Errorf("stopped in order %v", order)
	}
}

func TestPartFails(t *testing.T) {
	boom := errors.New("boom")
	var order []string
	late := errors.New("late")
	err := supervise(context.Background(), []part{
		waiting("store", &order, late),
		{"source", func(context.Context) error { return boom }},
		waiting("gateway", &order, nil),
	})
	if !errors.Is(err, boom) || !errors.Is(err, late) || !strings.HasPrefix(err.Error(), "source: boom") {
		t.Errorf("%v", err)
	}
	if !slices.Equal(order, []string{"gateway", "store"}) {
		t.Errorf("stopped in order %v", order)
	}
}

func TestPartEndsByItself(t *testing.T) {
	err := supervise(context.Background(), []part{{"source", func(context.Context) error { return nil }}})
	if err == nil || err.Error() != "source ended by itself" {
		t.Errorf("%v", err)
	}
}
