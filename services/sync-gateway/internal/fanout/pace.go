package fanout

import "time"

const (
	// paceBurst is how many checkpoints a session may begin at once, and
	// paceEvery how often one more. What a client has received and not applied,
	// in its socket and its SDK, is out of the gateway's sight: one that is given
	// more checkpoints than it can apply falls behind what it shows its user,
	// further and further, though each Send succeeds.
	paceBurst = 10
	paceEvery = 100 * time.Millisecond
)

// pace spreads the checkpoints of a session, so that under steady writes they
// carry several transactions each. The zero value allows a burst.
type pace struct {
	even time.Time // when all that was spent is earned again
}

// wait is how long from now until another checkpoint may begin; 0 = now.
func (p *pace) wait(now time.Time) time.Duration {
	return max(0, p.even.Add(-(paceBurst-1)*paceEvery).Sub(now))
}

// spend takes one checkpoint.
func (p *pace) spend(now time.Time) {
	if p.even.Before(now) {
		p.even = now
	}
	p.even = p.even.Add(paceEvery)
}
