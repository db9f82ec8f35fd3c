package state

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"lode"
	"lode/agent/journal"
)

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

// TestNoList: when the database cannot write its list of files, changes are
// refused, reads and Close work, and what is opened then is what was at some
// position.
func TestNoList(t *testing.T) {
	for name, op := range map[string]errorfs.OpKind{"write": errorfs.OpFileWrite, "sync": errorfs.OpFileSync} {
		t.Run(name, func(t *testing.T) {
			var broken atomic.Bool
			fs := errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(o errorfs.Op) error {
				if broken.Load() && o.Kind == op && strings.Contains(o.Path, "MANIFEST") {
					return syscall.ENOSPC
				}
				return nil
			}))
			dir, p := t.TempDir(), journal.Partition{Namespace: "default", Kind: "cart"}
			d, err := Open(dir, Config{fs: fs})
			if err != nil {
				t.Fatal(err)
			}
			next := func(pos uint64) error {
				return d.Apply("n1", pos, []Applied{{p, 1, []journal.Change{{Kind: journal.Set, Key: []byte("pos"), Value: fmt.Append(nil, pos)}}}})
			}
			for _, step := range []func() error{func() error { return next(1) }, d.flush, func() error { return next(2) }} {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			broken.Store(true)
			for _, step := range []func() error{d.flush, func() error { return next(3) }} {
				if err := step(); lode.KindOf(err) != lode.Full {
					t.Fatal(err)
				}
			}
			if v, ok, err := d.Part(p).Get([]byte("pos")); string(v) != "2" || !ok || err != nil {
				t.Errorf("%q %t %v", v, ok, err)
			}
			if err := d.Close(); lode.KindOf(err) != lode.Full {
				t.Error(err)
			}
			d, err = Open(dir, Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			n, err := d.Applied("n1")
			v, _, err2 := d.Part(p).Get([]byte("pos"))
			if n < 1 || n > 2 || string(v) != fmt.Sprint(n) || err != nil || err2 != nil {
				t.Errorf("applied %d, value %q: %v %v", n, v, err, err2)
			}
		})
	}
}
