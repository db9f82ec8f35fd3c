package state_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"lode"
	"lode/agent/journal"
	"lode/agent/state"
)

func long() bool { return os.Getenv("LODE_LONG") != "" }

// model is what a partition should be.
type model map[string]string

func (m model) apply(cs []journal.Change) {
	for _, c := range cs {
		switch c.Kind {
		case journal.Set:
			m[string(c.Key)] = string(c.Value)
		case journal.Delete:
			delete(m, string(c.Key))
		case journal.Cut:
			maps.DeleteFunc(m, func(k, _ string) bool { return k >= string(c.Key) && k < string(c.Value) })
		}
	}
}

// is fails if the partition is not what m says.
func (m model) is(t testing.TB, l lister) {
	t.Helper()
	keys := slices.Sorted(maps.Keys(m))
	n := 0
	if err := l.List(nil, nil, false, func(k, v []byte) bool {
		if n >= len(keys) || string(k) != keys[n] || string(v) != m[keys[n]] {
			t.Errorf("key %d is %q, of %d", n, k, len(keys))
			return false
		}
		n++
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if n != len(keys) && !t.Failed() {
		t.Errorf("%d keys, want %d", n, len(keys))
	}
}

// change makes up a change among keys of 4,000.
func change(r *rand.Rand) journal.Change {
	key := func() string { return fmt.Sprintf("agent/%04d", r.IntN(4000)) }
	switch n := r.IntN(100); {
	case n < 75:
		size := r.IntN(1500)
		if r.IntN(50) == 0 {
			size = r.IntN(300 << 10)
		}
		return set(key(), strings.Repeat(strconv.Itoa(r.IntN(10)), size))
	case n < 80:
		return journal.Change{Kind: journal.Set, Key: []byte(key()), Value: state.EncodeBlob(lode.Digest{byte(r.IntN(256)), 7}, 1<<20)}
	case n < 95:
		return del(key())
	}
	a := r.IntN(4000)
	return cut(fmt.Sprintf("agent/%04d", a), fmt.Sprintf("agent/%04d", a+r.IntN(400)))
}

// checkManifest fails if a manifest's segments are too long, or so short that
// they should have been joined, or do not name the blobs of values.
func checkManifest(t *testing.T, m *state.Manifest, want model) {
	t.Helper()
	for i := range m.Segments {
		s := &m.Segments[i]
		if s.Bytes > state.SegmentMost+(300<<10) {
			t.Errorf("segment %d has %d bytes", i, s.Bytes)
		}
		if i > 0 {
			if a, b := m.Segments[i-1].Bytes, s.Bytes; min(a, b) < state.SegmentSmall && a+b <= state.SegmentTarget {
				t.Errorf("segments %d and %d have %d and %d bytes", i-1, i, a, b)
			}
		}
	}
	if m.Keys() != len(want) {
		t.Errorf("%d keys, want %d", m.Keys(), len(want))
	}
	named := m.Blobs()
	for k, v := range want {
		if _, d, _, blob, err := state.DecodeValue([]byte(v)); err == nil && blob && !slices.Contains(named, d) {
			t.Errorf("the blob of %s is not named", k)
		}
	}
}

// TestSaveRestore: whatever changes, is saved, fails to be saved, is opened
// again or swept, what is restored is what was saved; a Save that knows what
// has changed makes the same snapshot as one that does not.
func TestSaveRestore(t *testing.T) {
	rounds := 6
	if long() {
		rounds = 200
	}
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			dir, b, want := t.TempDir(), newMem(), model{}
			d, other := open(t, dir), t.TempDir()
			var prev lode.Digest
			pos := uint64(0)
			for round := range rounds {
				for range r.IntN(1 + []int{0, 5, 1500}[r.IntN(3)]) {
					c := change(r)
					pos++
					apply(t, d, "n1", pos, one(p0, 1, c), one(p1, 1, c))
					want.apply([]journal.Change{c})
				}
				if r.IntN(4) == 0 {
					d.Close()
					d = open(t, dir)
				}
				mark := state.Mark{Epoch: 1, Journal: "n1", Pos: pos}
				if r.IntN(3) == 0 {
					boom := errors.New("boom")
					b.put = func(int) error { return boom }
					if _, _, err := d.Part(p0).Save(t.Context(), b, prev, mark); !errors.Is(err, boom) {
						t.Fatal(err)
					}
					b.put = nil
				}
				got, stats, err := d.Part(p0).Save(t.Context(), b, prev, mark)
				if err != nil {
					t.Fatal(err)
				}
				prev = got
				m, err := state.ReadManifest(t.Context(), b, got)
				if err != nil {
					t.Fatal(err)
				}
				checkManifest(t, m, want)
				if m.Mark != mark || m.Part != p0 || stats.Keys != len(want) || stats.Segments != len(m.Segments) {
					t.Errorf("round %d: %+v %+v", round, m.Mark, stats)
				}
				b.keep(append(m.Blobs(), got)...)
				same(t, other, b, got, mark, want)
				want.is(t, d.Part(p0))
			}
			want.is(t, d.Part(p1))
		})
	}
}

// same restores a snapshot, and saves it again, knowing what has changed and
// not.
func same(t *testing.T, dir string, b *mem, manifest lode.Digest, mark state.Mark, want model) {
	t.Helper()
	d := open(t, dir)
	if err := d.Part(p0).Restore(t.Context(), b, manifest); err != nil {
		t.Fatal(err)
	}
	want.is(t, d.Part(p0))
	if m, ok, err := d.Part(p0).Mark(); m != mark || !ok || err != nil {
		t.Fatal(m, ok, err)
	}
	again, stats, err := d.Part(p0).Save(t.Context(), b, manifest, mark)
	if err != nil || again != manifest || stats.Read != 0 {
		t.Fatalf("%v: %s, want %s; %+v", err, again, manifest, stats)
	}
	d.Close() // so that it is not known what has changed
	d = open(t, dir)
	defer d.Close()
	again, stats, err = d.Part(p0).Save(t.Context(), b, manifest, mark)
	if err != nil || again != manifest || stats.Read != stats.Bytes {
		t.Fatalf("%v: %s, want %s; %+v", err, again, manifest, stats)
	}
}

// TestSaveLittle: a Save after a small change reads and puts a small part.
func TestSaveLittle(t *testing.T) {
	dir, b := t.TempDir(), newMem()
	d := open(t, dir)
	var cs []journal.Change
	for i := range 10_000 {
		cs = append(cs, set(fmt.Sprintf("k%05d", i), strings.Repeat("v", 1000)))
	}
	apply(t, d, "n1", 1, one(p0, 1, cs...))
	mark := state.Mark{Epoch: 1, Journal: "n1", Pos: 1}
	first, all, err := d.Part(p0).Save(t.Context(), b, lode.Digest{}, mark)
	if err != nil || all.Keys != 10_000 || all.Read < 10_000_000 || all.Put < all.Bytes {
		t.Fatal(all, err)
	}
	apply(t, d, "n1", 2, one(p0, 1, set("k05000", "new")))
	second, few, err := d.Part(p0).Save(t.Context(), b, first, mark)
	if err != nil || few.Keys != 10_000 || few.Read > state.SegmentMost || few.Put > state.SegmentMost || second == first {
		t.Fatal(few, err)
	}
	d.Close()
	d = open(t, dir)
	apply(t, d, "n1", 3, one(p0, 1, set("k07000", "new")))
	_, few, err = d.Part(p0).Save(t.Context(), b, second, mark)
	if err != nil || few.Read != few.Bytes || few.Put > state.SegmentMost {
		t.Fatal(few, err)
	}
}

// TestSaveMeanwhile: a snapshot is the state at one position, not before the
// one it covers, whatever is applied while it is made.
func TestSaveMeanwhile(t *testing.T) {
	d, b := open(t, t.TempDir()), newMem()
	other := open(t, t.TempDir())
	message := func(pos uint64) []journal.Change {
		r := rand.New(rand.NewPCG(pos, 2))
		return []journal.Change{change(r), change(r), set("~pos", strconv.FormatUint(pos, 10))}
	}
	var mu sync.Mutex
	pos := uint64(0)
	next := func() {
		mu.Lock()
		defer mu.Unlock()
		pos++
		if err := d.Apply("n1", pos, []state.Applied{one(p0, 1, message(pos)...), one(p1, 1, set("n", fmt.Sprint(pos)))}); err != nil {
			t.Error(err)
		}
	}
	for range 2000 {
		next()
	}
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			next()
		}
	})
	b.put = func(int) error { // so that there is always something between two blobs
		for range 3 {
			next()
		}
		return nil
	}
	defer func() { stop(); done.Wait() }()
	want, at := model{}, uint64(0)
	var prev lode.Digest
	for range 4 {
		mu.Lock()
		covers := pos
		mu.Unlock()
		m, _, err := d.Part(p0).Save(t.Context(), b, prev, state.Mark{Epoch: 1, Journal: "n1", Pos: covers})
		if err != nil {
			t.Fatal(err)
		}
		prev = m
		if err := other.Part(p0).Restore(t.Context(), b, m); err != nil {
			t.Fatal(err)
		}
		v, _, err := other.Part(p0).Get([]byte("~pos"))
		if err != nil {
			t.Fatal(err)
		}
		is, _ := strconv.ParseUint(string(v), 10, 64)
		if is < covers {
			t.Fatalf("the snapshot is of %d, it covers %d", is, covers)
		}
		for ; at < is; at++ {
			want.apply(message(at + 1))
		}
		want.is(t, other.Part(p0))
	}
}

// TestSaveOnce: one at a time; Close ends one that is under way.
func TestSaveOnce(t *testing.T) {
	d, b := open(t, t.TempDir()), newMem()
	apply(t, d, "n1", 1, one(p0, 1, set("a", "1")))
	inside := make(chan struct{})
	hold := &holding{mem: b, inside: inside}
	failed := make(chan error)
	go func() {
		_, _, err := d.Part(p0).Save(context.Background(), hold, lode.Digest{}, state.Mark{})
		failed <- err
	}()
	<-inside
	_, _, err := d.Part(p0).Save(t.Context(), b, lode.Digest{}, state.Mark{})
	wantKind(t, err, lode.Conflict)
	if _, _, err := d.Part(p1).Save(t.Context(), b, lode.Digest{}, state.Mark{}); err != nil {
		t.Error(err)
	}
	apply(t, d, "n1", 2, one(p0, 1, set("a", "2")))
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// holding puts nothing until it is cancelled.
type holding struct {
	*mem
	inside chan struct{}
}

var _ state.Blobs = (*holding)(nil)

func (h *holding) Put(ctx context.Context, b []byte) (lode.Digest, error) {
	close(h.inside)
	<-ctx.Done()
	return lode.Digest{}, ctx.Err()
}

// TestRestoreDamaged: blobs that are cut, changed, exchanged or gone are found
// and named, and the partition stays what it was.
func TestRestoreDamaged(t *testing.T) {
	d, b := open(t, t.TempDir()), newMem()
	var cs []journal.Change
	for i := range 3000 {
		cs = append(cs, set(fmt.Sprintf("k%05d", i), strings.Repeat(strconv.Itoa(i), 200)))
	}
	apply(t, d, "n1", 1, one(p0, 1, cs...))
	good, _, err := d.Part(p0).Save(t.Context(), b, lode.Digest{}, state.Mark{Epoch: 1, Journal: "n1", Pos: 1})
	if err != nil {
		t.Fatal(err)
	}
	m, err := state.ReadManifest(t.Context(), b, good)
	if err != nil || len(m.Segments) < 3 {
		t.Fatal(m, err)
	}
	second := m.Segments[1].Digest
	lying := func(f func(m *state.Manifest)) lode.Digest {
		l := *m
		l.Segments = slices.Clone(m.Segments)
		f(&l)
		dg, _ := b.Put(t.Context(), l.Encode())
		return dg
	}
	for _, c := range []struct {
		name     string
		manifest lode.Digest
		blob     lode.Digest
		do       func([]byte) []byte
		kind     lode.Kind
		says     string
	}{
		{"segment flipped", good, second, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, lode.Damaged, "segment 1 of"},
		{"segment cut", good, second, func(b []byte) []byte { return b[:len(b)-1] }, lode.Damaged, "segment 1 of"},
		{"segment empty", good, second, func(b []byte) []byte { return nil }, lode.Damaged, "segment 1 of"},
		{"segment gone", good, second, nil, lode.NotFound, "segment 1 of"},
		{"manifest flipped", good, good, func(b []byte) []byte { b[3] ^= 1; return b }, lode.Damaged, good.String()},
		{"manifest cut", good, good, func(b []byte) []byte { return b[:9] }, lode.Damaged, good.String()},
		{"manifest gone", good, good, nil, lode.NotFound, good.String()},
		{"wrong count", lying(func(m *state.Manifest) { m.Segments[2].Keys++ }), lode.Digest{}, nil, lode.Damaged, "segment 2 of"},
		{"wrong size", lying(func(m *state.Manifest) { m.Segments[2].Bytes++ }), lode.Digest{}, nil, lode.Damaged, "segment 2 of"},
		{"wrong first key", lying(func(m *state.Manifest) { m.Segments[2].First = append(bytes.Clone(m.Segments[2].First), 'x') }), lode.Digest{}, nil, lode.Damaged, "segment 2 of"},
		{"exchanged", lying(func(m *state.Manifest) { m.Segments[0].Digest = second }), lode.Digest{}, nil, lode.Damaged, "segment 0 of"},
		{"of a neighbour", lying(func(m *state.Manifest) { m.Part = p1 }), lode.Digest{}, nil, lode.Invalid, p1.String()},
		{"not a manifest", second, lode.Digest{}, nil, lode.Damaged, second.String()},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := newMem()
			bad.blobs = maps.Clone(b.blobs)
			if c.do != nil {
				bad.blobs[c.blob] = c.do(bytes.Clone(b.blobs[c.blob]))
			} else {
				delete(bad.blobs, c.blob)
			}
			err := d.Part(p0).Restore(t.Context(), bad, c.manifest)
			wantKind(t, err, c.kind)
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), p0.String()) {
				t.Error(err)
			}
		})
	}
	if got := strings.Count(dump(t, d.Part(p0), "", "", false), "="); got != 3000 {
		t.Errorf("%d keys are left", got)
	}
}

// TestSavePrevGone: without the snapshot before, all is saved anew.
func TestSavePrevGone(t *testing.T) {
	d, b := open(t, t.TempDir()), newMem()
	apply(t, d, "n1", 1, one(p0, 1, set("a", "1")))
	first, _, err := d.Part(p0).Save(t.Context(), b, lode.Digest{}, state.Mark{Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	b.keep()
	second, _, err := d.Part(p0).Save(t.Context(), b, first, state.Mark{Epoch: 1})
	if err != nil || second != first {
		t.Fatal(err)
	}
	if err := d.Part(p0).Restore(t.Context(), b, second); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, d.Part(p0), "", "", false); got != "a=1" {
		t.Error(got)
	}
}
