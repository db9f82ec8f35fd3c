package store

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lode"
)

func TestGraves(t *testing.T) {
	dir := t.TempDir()
	now := time.Unix(1_000_000, 5)
	reopen := func(now time.Time) *graves {
		t.Helper()
		g, err := openGraves(dir, now)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { g.Close() })
		return g
	}
	g := reopen(now)
	a, b, c := lode.Digest{1}, lode.Digest{2}, lode.Digest{3}
	for _, d := range []lode.Digest{a, b, c} {
		if err := g.bury(d, now.Add(-time.Hour), now); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.bury(a, now.Add(-2*time.Hour), now); err != nil || !g.cutoff(a).Equal(now.Add(-time.Hour)) {
		t.Errorf("an earlier deletion moved the cutoff to %v (%v)", g.cutoff(a), err)
	}
	if err := g.end(b, now); err != nil {
		t.Fatal(err)
	}
	g.Close()
	g = reopen(now.Add(time.Hour))
	if !g.cutoff(a).Equal(now.Add(-time.Hour)) || !g.cutoff(b).IsZero() || g.cutoff(c).IsZero() {
		t.Errorf("after a restart: %v", g.at)
	}
	g.Close()
	if fi, err := os.Stat(filepath.Join(dir, "graves")); err != nil || fi.Size() != 2*graveSize {
		t.Errorf("the file was not shortened: %v, %v", fi.Size(), err)
	}
	if g = reopen(now.Add(keepGraves + time.Hour)); len(g.at) != 0 {
		t.Errorf("after %v: %v", keepGraves, g.at)
	}
}

// A file that grows is shortened while it is in use.
func TestGravesAreShortened(t *testing.T) {
	dir := t.TempDir()
	now := time.Unix(1_000_000, 0)
	g, err := openGraves(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for i := range 3000 {
		d := lode.Digest{byte(i % 10)}
		if err := g.bury(d, now.Add(time.Duration(i)), now); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "graves")); err != nil || fi.Size() > 1100*graveSize {
		t.Errorf("the file has %d records (%v)", fi.Size()/graveSize, err)
	}
	g.Close()
	again, err := openGraves(dir, now)
	if err != nil || len(again.at) != 10 || !again.cutoff(lode.Digest{9}).Equal(now.Add(2999)) {
		t.Errorf("%d graves, %v", len(again.at), err)
	}
	again.Close()
}

// FuzzGraves: whatever is in the file, what is read is written and read again
// as the same; a damaged record costs itself alone.
func FuzzGraves(f *testing.F) {
	good := appendGrave(nil, lode.Digest{1}, grave{time.Unix(1, 1), time.Unix(2, 2)})
	f.Add(good)
	f.Add(append(bytes.Clone(good), good[:17]...))
	f.Add(appendGrave(good, lode.Digest{1}, grave{made: time.Unix(3, 3)}))
	f.Add(make([]byte, 2*graveSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		at, n := parseGraves(b)
		if n != len(b)/graveSize || len(at) > n {
			t.Fatalf("%d records, %d graves of %d bytes", n, len(at), len(b))
		}
		var again []byte
		for d, v := range at {
			again = appendGrave(again, d, v)
		}
		back, _ := parseGraves(again)
		if len(back) != len(at) {
			t.Fatalf("%d graves came back as %d", len(at), len(back))
		}
		for d, v := range at {
			if w := back[d]; !w.cutoff.Equal(v.cutoff) || !w.made.Equal(v.made) {
				t.Fatalf("%v came back as %v", v, w)
			}
		}
	})
}
