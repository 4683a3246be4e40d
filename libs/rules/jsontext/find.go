package jsontext

// Find looks path up in the text s, key by key, as Parse and Get would, but
// without making nodes of what is not on the way. All of s is checked.
func Find(s string, path []string) (n Node, ok bool, err error) {
	p := parser{s: s}
	p.space()
	n, ok = p.find(path, 0)
	p.space()
	if p.err == nil && p.i < len(s) {
		p.err = errSyntax
	}
	if p.err != nil {
		return Node{}, false, p.err
	}
	return n, ok, nil
}

func (p *parser) find(path []string, depth int) (n Node, ok bool) {
	if len(path) > 0 && p.peek() == '{' && depth <= MaxDepth {
		p.members(func(key string) {
			if key == path[0] {
				n, ok = p.find(path[1:], depth+1)
			} else {
				p.skip(depth + 1)
			}
		})
		return n, ok
	}
	n, ok = p.node(depth), true
	for _, key := range path {
		if ok {
			n, ok = n.Get(key)
		}
	}
	return n, ok
}

// skip checks the value at p.i.
func (p *parser) skip(depth int) {
	if depth > MaxDepth {
		p.fail(errDepth)
		return
	}
	switch p.peek() {
	case '{':
		p.members(func(string) { p.skip(depth + 1) })
	case '[':
		p.elements(func() { p.skip(depth + 1) })
	default:
		p.node(depth)
	}
}
