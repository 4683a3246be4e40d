package harness

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Same says what a client must hold: the client's query gives the source's rows.
// Both are ordered by the query; text is compared, so cast what the two
// databases print differently.
type Same struct {
	Client *Client
	Local  string // SQL for the client's SQLite
	Source string // SQL for Postgres
}

// Converged waits until every client holds what the source holds, and returns
// how long it took. The source must be quiet, or catch up with itself.
func Converged(t testing.TB, p *Postgres, within time.Duration, all ...Same) time.Duration {
	t.Helper()
	return Eventually(t, within, "clients equal the source", func() error {
		for _, s := range all {
			want, err := p.Rows(s.Source)
			if err != nil {
				return err
			}
			got, err := s.Client.Rows(s.Local)
			if err != nil {
				return err
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("client %s, %s: %s", s.Client.name, s.Local, difference(got, want))
			}
		}
		return nil
	})
}

// difference names the first rows that only one side has.
func difference(got, want []string) string {
	const shown = 8
	count := map[string]int{}
	for _, r := range want {
		count[r]++
	}
	var extra, missing []string
	for _, r := range got {
		if count[r]--; count[r] < 0 {
			extra = append(extra, r)
		}
	}
	for r, n := range count {
		for range n {
			missing = append(missing, r)
		}
	}
	slices.Sort(missing)
	return fmt.Sprintf("%d rows, want %d; %d too many %q, %d missing %q", len(got), len(want),
		len(extra), extra[:min(shown, len(extra))], len(missing), missing[:min(shown, len(missing))])
}
