package local

import "sync"

// overhead is what a message counts for besides its bytes, so that empty ones
// are bounded too.
const overhead = 64

// queue is one direction of a stream, between one sender and one receiver.
type queue struct {
	limit int
	more  chan struct{} // holds a token after a message, or the end, came
	space chan struct{} // holds a token after a message was taken

	mu       sync.Mutex
	messages []message // guarded by mu, as the rest is
	size     int
	over     bool // nothing more comes
}

func newQueue(limit int) *queue {
	return &queue{limit: limit, more: make(chan struct{}, 1), space: make(chan struct{}, 1)}
}

// put adds m when there is space for it. It returns false, and has not added m,
// if stop or done is closed or the queue is.
func (q *queue) put(m message, stop, done <-chan struct{}) bool {
	for !ended(stop) && !(done != nil && ended(done)) {
		q.mu.Lock()
		if q.over {
			q.mu.Unlock()
			return false
		}
		if len(q.messages) == 0 || q.size+m.size() <= q.limit {
			q.messages = append(q.messages, m)
			q.size += m.size()
			q.mu.Unlock()
			signal(q.more)
			return true
		}
		q.mu.Unlock()
		select {
		case <-q.space:
		case <-stop:
		case <-done:
		}
	}
	return false
}

// outcome is what came of take.
type outcome int

const (
	taken   outcome = iota
	closed          // after the last message
	stopped         // stop was closed
)

// take returns the next message when there is one.
func (q *queue) take(stop <-chan struct{}) (message, outcome) {
	for !ended(stop) {
		q.mu.Lock()
		if len(q.messages) > 0 {
			m := q.messages[0]
			q.messages[0] = message{}
			q.messages = q.messages[1:]
			q.size -= m.size()
			q.mu.Unlock()
			signal(q.space)
			return m, taken
		}
		over := q.over
		q.mu.Unlock()
		if over {
			return message{}, closed
		}
		select {
		case <-q.more:
		case <-stop:
		}
	}
	return message{}, stopped
}

// close says that nothing more comes.
func (q *queue) close() {
	q.mu.Lock()
	q.over = true
	q.mu.Unlock()
	signal(q.more)
}

// signal leaves a token for whoever waits, or will.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
