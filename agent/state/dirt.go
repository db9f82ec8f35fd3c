package state

import (
	"bytes"
	"slices"

	"lode"
)

// dirt is what has changed in a partition since a snapshot: for each segment,
// whether one of its keys may have.
type dirt struct {
	base   lode.Digest // the snapshot's manifest
	firsts [][]byte    // first keys of its segments; segment i has the keys from i's to before the next one's, 0 also those before
	marks  []bool      // by segment; one, if there is none
}

func newDirt(base lode.Digest, m *Manifest) *dirt {
	d := &dirt{base: base, marks: make([]bool, max(1, len(m.Segments)))}
	for i := range m.Segments {
		d.firsts = append(d.firsts, bytes.Clone(m.Segments[i].First))
	}
	return d
}

// of is the segment that a key belongs to.
func (d *dirt) of(key []byte) int {
	i, exact := slices.BinarySearchFunc(d.firsts, key, bytes.Compare)
	if exact {
		return i
	}
	return max(0, i-1)
}

func (d *dirt) touch(key []byte) { d.marks[d.of(key)] = true }

// touchRange marks the keys from start to before end; nil: to the last.
func (d *dirt) touchRange(start, end []byte) {
	for i := d.of(start); i < len(d.marks) && (i == 0 || end == nil || i >= len(d.firsts) || bytes.Compare(d.firsts[i], end) < 0); i++ {
		d.marks[i] = true
	}
}

// add marks what changed while a snapshot was made.
func (d *dirt) add(l *log) {
	for _, s := range l.spans {
		d.touchRange(s.start, s.end)
	}
}

// span is the keys from start to before end; nil: to the last.
type span struct{ start, end []byte }

// log is the keys that changed during a Save, when the segments that they will
// belong to are not yet known. It has a bound: neighbours become one span.
type log struct{ spans []span }

const mostSpans = 4096

func (l *log) add(start, end []byte) {
	l.spans = append(l.spans, span{start, end})
	if len(l.spans) < mostSpans {
		return
	}
	slices.SortFunc(l.spans, func(a, b span) int { return bytes.Compare(a.start, b.start) })
	kept := l.spans[:0]
	for i := 0; i < len(l.spans); i += 2 {
		s := l.spans[i]
		if i+1 < len(l.spans) {
			s.end = later(s.end, l.spans[i+1].end)
		}
		kept = append(kept, s)
	}
	clear(l.spans[len(kept):])
	l.spans = kept
}

func later(a, b []byte) []byte {
	if a == nil || b == nil {
		return nil
	}
	if bytes.Compare(a, b) < 0 {
		return b
	}
	return a
}

// touch notes a change of a key, touchRange of those from start to before end;
// DB.mu is held.
func (c *copyOf) touch(key []byte) {
	if c.since != nil {
		end := append(bytes.Clone(key), 0)
		c.since.add(end[:len(key):len(key)], end)
	} else if c.dirt != nil {
		c.dirt.touch(key)
	}
}

func (c *copyOf) touchRange(start, end []byte) {
	if c.since != nil {
		c.since.add(bytes.Clone(start), bytes.Clone(end))
	} else if c.dirt != nil {
		c.dirt.touchRange(start, end)
	}
}
