package resolve

func (r *resolver) streams3() {}
