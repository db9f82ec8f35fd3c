package link

import "sync"

// buf is a buffer of a pool. Who holds it frees it, once, or leaves it to the
// garbage collector.
type buf struct {
	b     []byte // what is in it
	class int
}

// classes are the capacities of pooled buffers. The last one holds a chunk
// with its header, or a reply of the largest size.
var classes = [...]int{2 << 10, 16 << 10, headerSize + maxChunk, headerSize + replyFixed + MaxHead + MaxBody}

type bufs struct{ pools [len(classes)]sync.Pool }

// get returns a buffer of n bytes, with what was in it before.
func (p *bufs) get(n int) *buf {
	for i, size := range classes {
		if n <= size {
			b, ok := p.pools[i].Get().(*buf)
			if !ok {
				b = &buf{b: make([]byte, size), class: i}
			}
			b.b = b.b[:n]
			return b
		}
	}
	return &buf{b: make([]byte, n), class: -1}
}

// merge appends more to last, if it has room, and frees more: many small
// chunks must not cost a buffer each.
func (p *bufs) merge(last, more *buf) bool {
	if cap(last.b)-len(last.b) < len(more.b) {
		return false
	}
	last.b = append(last.b, more.b...)
	p.put(more)
	return true
}

func (p *bufs) put(b *buf) {
	if b != nil && b.class >= 0 {
		p.pools[b.class].Put(b)
	}
}
