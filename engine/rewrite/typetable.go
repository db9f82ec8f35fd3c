package rewrite

// typeTable adds types to the end of the original's.
type typeTable struct {
	n     uint32
	b     []byte
	added map[string]uint32
}

// index is the index of type t, which is added when it was not yet.
func (t *typeTable) index(params, results []ValType) uint32 {
	var e []byte
	e = append(e, 0x60)
	e = appendTypes(e, params)
	e = appendTypes(e, results)
	if i, ok := t.added[string(e)]; ok {
		return i
	}
	i := t.n
	t.n++
	t.b = append(t.b, e...)
	t.added[string(e)] = i
	return i
}

func appendTypes(b []byte, ts []ValType) []byte {
	b = appendU32(b, uint32(len(ts)))
	for _, v := range ts {
		b = append(b, byte(v))
	}
	return b
}

// block appends the block type of a block without parameters.
func (t *typeTable) block(b []byte, results []ValType) []byte {
	switch len(results) {
	case 0:
		return append(b, 0x40)
	case 1:
		return append(b, byte(results[0]))
	}
	return appendS64(b, int64(t.index(nil, results)))
}
