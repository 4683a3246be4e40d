package source

import "unsafe"

// arenaChunk is the size of an arena's pieces; larger texts get their own.
const arenaChunk = 256 << 10

// Arena holds the bytes of many texts in few allocations. Strings that it
// returned are valid until Reset, which is the caller's promise to keep: rows
// are encoded before their arena is reused.
type Arena struct {
	free [][]byte // chunks before Reset, empty
	full [][]byte
	buf  []byte // the chunk being filled
}

// Reserve returns a slice of length zero and capacity n or more at the arena's
// end; Take keeps what was appended to it.
func (a *Arena) Reserve(n int) []byte {
	if cap(a.buf)-len(a.buf) < n {
		a.grow(n)
	}
	return a.buf[len(a.buf):]
}

func (a *Arena) grow(n int) {
	if cap(a.buf) > 0 {
		a.full = append(a.full, a.buf)
	}
	if last := len(a.free) - 1; last >= 0 && n <= arenaChunk {
		a.buf = a.free[last]
		a.free = a.free[:last]
		return
	}
	a.buf = make([]byte, 0, max(n, arenaChunk))
}

// Take keeps b, which is what Reserve returned with something appended, and
// returns it as a string. If b outgrew its reservation it has memory of its own.
func (a *Arena) Take(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if cap(b) == cap(a.buf)-len(a.buf) && len(a.buf) < cap(a.buf) && &b[0] == &a.buf[:len(a.buf)+1][len(a.buf)] {
		a.buf = a.buf[:len(a.buf)+len(b)]
	}
	return unsafe.String(&b[0], len(b))
}

// Text copies b into the arena.
func (a *Arena) Text(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if cap(a.buf)-len(a.buf) < len(b) {
		a.grow(len(b))
	}
	at := len(a.buf)
	a.buf = append(a.buf, b...)
	return unsafe.String(&a.buf[at], len(b))
}

// Reset forgets all texts and keeps up to 4 MiB of memory.
func (a *Arena) Reset() {
	if cap(a.buf) > 0 {
		a.full = append(a.full, a.buf)
		a.buf = nil
	}
	for _, c := range a.full {
		if cap(c) == arenaChunk && len(a.free) < 16 {
			a.free = append(a.free, c[:0])
		}
	}
	clear(a.full)
	a.full = a.full[:0]
}
