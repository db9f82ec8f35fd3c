package agent

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"lode"
)

// codecs reads bytes as each of the records, and writes what it read.
var codecs = map[string]func(b []byte) ([]byte, error){
	"meta":    func(b []byte) ([]byte, error) { x, err := decodeMeta(b); return x.encode(), err },
	"outcome": func(b []byte) ([]byte, error) { x, err := decodeOutcome(b); return x.encode(), err },
	"timer":   func(b []byte) ([]byte, error) { x, err := decodeTimer(b); return x.encode(), err },
	"dead":    func(b []byte) ([]byte, error) { x, err := decodeDead(b); return x.encode(), err },
	"socket":  func(b []byte) ([]byte, error) { x, err := decodeSocket(b); return x.encode(), err },
	"window":  func(b []byte) ([]byte, error) { x, err := decodeWindow(b); return x.encode(), err },
	"letter": func(b []byte) ([]byte, error) {
		x, err := decodeLetter(b)
		e := newEnc(0)
		x.encode(e)
		return e.b, err
	},
	"event": func(b []byte) ([]byte, error) { x, err := decodeEvent(1, b); return encodeEvent(x.Type, x.Data), err },
}

func records() map[string][]byte {
	l := letter{To: "k\x00", From: "kind/x", ID: "id", Method: "m", Type: "t", Body: []byte("body"), Due: -1, Trace: "tr"}
	le := newEnc(0)
	l.encode(le)
	return map[string][]byte{
		"meta":    (&meta{1, 2, 3, 4, 5, 6}).encode(),
		"outcome": (&outcome{Hash: 1 << 63, Status: 200, Head: []lode.Pair{{Key: "a", Value: "b"}, {}}, Body: []byte("x"), Lost: true}).encode(),
		"timer":   (&timer{Due: 1, First: 2, N: 3, Method: "m", Type: "t", Body: []byte("b"), Fails: 4, Why: "w", Caller: "c", ID: "i", Hash: 5}).encode(),
		"dead":    (&dead{At: 1, Letter: l, Why: "w", Kind: lode.Crashed, Tries: 10}).encode(),
		"socket":  (&socket{Tags: []string{"a", ""}, Attachment: []byte("x"), Sent: 1}).encode(),
		"window":  (&window{Mark: 7, Bits: []uint64{2, 1 << 63}}).encode(),
		"letter":  le.b,
		"event":   encodeEvent("t", []byte("data")),
	}
}

// TestCodecs: records are read as they were written; what is cut or has more is
// Damaged.
func TestCodecs(t *testing.T) {
	for name, b := range records() {
		again, err := codecs[name](b)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: %x became %x, %v", name, b, again, err)
		}
		for n := range len(b) {
			if _, err := codecs[name](b[:n]); lode.KindOf(err) != lode.Damaged {
				t.Errorf("the first %d bytes of a %s: %v", n, name, err)
			}
		}
		if _, err := codecs[name](append(slices.Clone(b), 0)); lode.KindOf(err) != lode.Damaged {
			t.Errorf("a %s and a byte: %v", name, err)
		}
	}
}

// FuzzCodecs: any bytes are a record, which reads as itself when it is written,
// or Damaged.
func FuzzCodecs(f *testing.F) {
	for _, b := range records() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, c := range codecs {
			again, err := c(b)
			if err != nil {
				if lode.KindOf(err) != lode.Damaged {
					t.Fatal(err)
				}
				continue
			}
			if third, err := c(again); err != nil || !bytes.Equal(third, again) {
				t.Fatalf("%s: %x, then %x, then %x: %v", name, b, again, third, err)
			}
		}
		unescape(b)
		parseDue(b)
		parsePeer(b)
		parseOrder(b)
		if address, _ := parseLink(string(b)); len(address) > len(b) {
			t.Fatal(address)
		}
		readFields(b).count()
		if _, err := (&Service{}).parseCall(b, b); err != nil && lode.KindOf(err) != lode.Invalid {
			t.Fatal(err)
		}
	})
}

// FuzzKeys: agents' keys keep their order when they are escaped, none is the
// beginning of another, and they read as they were.
func FuzzKeys(f *testing.F) {
	for _, k := range []string{"", "a", "a\x00", "a\x00\x01", "a\x00\xff", "\xff\xff", "a\x01"} {
		f.Add(k, "a")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := escape(nil, a), escape(nil, b)
		if got, rest, ok := unescape(append(slices.Clone(x), "rest"...)); !ok || got != a || string(rest) != "rest" {
			t.Fatalf("%q became %q, %q", a, got, rest)
		}
		if (a < b) != (bytes.Compare(x, y) < 0) || a != b && bytes.HasPrefix(x, y) {
			t.Fatalf("%q and %q are %x and %x", a, b, x, y)
		}
	})
}

// TestWindow: a window holds what was consumed, in any order, as a set would.
func TestWindow(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		w, set, mark := window{}, map[uint64]bool{}, uint64(0)
		for range 5000 {
			n := mark + 1 + r.Uint64N(1+r.Uint64N(windowMax+10))
			want := n <= mark+windowMax
			if got := w.add(n); got != want {
				t.Fatalf("add %d at mark %d: %v", n, mark, got)
			}
			if want {
				set[n] = true
			}
			for set[mark+1] {
				mark++
			}
			if w.Mark != mark {
				t.Fatalf("mark %d, want %d", w.Mark, mark)
			}
			probe := mark + r.Uint64N(windowMax)
			if w.has(probe) != (probe <= mark || set[probe]) {
				t.Fatalf("has %d at mark %d", probe, mark)
			}
			if r.IntN(50) == 0 {
				again, err := decodeWindow(w.encode())
				if err != nil || again.Mark != w.Mark || len(again.Bits) != len(w.Bits) || len(w.Bits) > 0 && !reflect.DeepEqual(again, w) {
					t.Fatalf("%v became %v, %v", w, again, err)
				}
			}
		}
	}
}
