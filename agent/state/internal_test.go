package state

import "testing"

// What the tests of the package look at.
var (
	DecodeManifest = decodeManifest
	ReadSegment    = readSegment
)

// The sizes of segments.
const (
	SegmentTarget = segmentTarget
	SegmentMost   = segmentMost
	SegmentSmall  = segmentSmall
)

// Encode is encode.
func (m *Manifest) Encode() []byte { return m.encode() }

// Dead reports whether the database must be opened again.
func (d *DB) Dead() bool {
	d.health.mu.Lock()
	defer d.health.mu.Unlock()
	return d.health.dead != nil
}

// Heal waits until the disk can be written again, or never can.
func (d *DB) Heal(t *testing.T) {
	for {
		changed, err := d.health.look(false)
		if err == nil || d.Dead() {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			return
		}
	}
}

// Flush is flush.
func (d *DB) Flush() error { return d.flush() }

// TestLog: however many changes it is told of, a log stays small and covers
// them all.
func TestLog(t *testing.T) {
	c := copyOf{since: new(log)}
	key := func(i int) []byte { return []byte{byte(i >> 16), byte(i >> 8), byte(i)} }
	for i := range 50_000 {
		n := i * 7919 % 50_000
		if n%3 == 0 {
			c.touchRange(key(n), key(n+2))
		} else {
			c.touch(key(n))
		}
	}
	if n := len(c.since.spans); n > mostSpans {
		t.Fatalf("%d spans", n)
	}
	m := &Manifest{}
	for i := range 1000 {
		m.Segments = append(m.Segments, Segment{First: key(i * 50)})
	}
	d := newDirt([32]byte{1}, m)
	d.add(c.since)
	for i, dirty := range d.marks {
		if !dirty {
			t.Errorf("segment %d is clean", i)
		}
	}
}

// TestDirt: a change marks the segments whose keys it may touch, and no others.
func TestDirt(t *testing.T) {
	for _, c := range []struct {
		name       string
		start, end string // end "": one key
		want       string
	}{
		{"before the first", "a", "", "x.."},
		{"the first", "c", "", "x.."},
		{"inside", "cc", "", "x.."},
		{"a first key", "f", "", ".x."},
		{"behind the last", "zz", "", "..x"},
		{"range inside", "d", "e", "x.."},
		{"range to a first key", "d", "f", "x.."},
		{"range over one", "d", "ff", "xx."},
		{"range over all", "a", "zz", "xxx"},
		{"range before", "a", "b", "x.."},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDirt([32]byte{1}, &Manifest{Segments: []Segment{{First: []byte("c")}, {First: []byte("f")}, {First: []byte("m")}}})
			if c.end == "" {
				d.touch([]byte(c.start))
			} else {
				d.touchRange([]byte(c.start), []byte(c.end))
			}
			got := ""
			for _, m := range d.marks {
				got += map[bool]string{true: "x", false: "."}[m]
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
	d := newDirt([32]byte{1}, &Manifest{})
	d.touch([]byte("a"))
	if !d.marks[0] {
		t.Error("nothing is dirty")
	}
	d = newDirt([32]byte{1}, &Manifest{})
	d.touchRange([]byte("a"), nil)
	if !d.marks[0] {
		t.Error("nothing is dirty")
	}
}
