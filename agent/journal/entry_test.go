package journal

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"

	"go.uber.org/goleak"

	"lode"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func samples() []Entry {
	p := Partition{"ns", "kind", 63}
	d := lode.Digest{1, 2, 3}
	return []Entry{
		{Op: Take, Epoch: 1, Partition: p},
		{Op: Take, Epoch: 1<<63 + 1, Partition: p, Base: Base{"node", 77, 3}, Manifest: d, Covers: 9},
		{Op: Snap, Epoch: 2, Partition: p, Manifest: d, Covers: 1 << 40},
		{Op: Give, Epoch: 2, Partition: p, To: "other"},
		{Op: Note, Epoch: 2, Partition: Partition{N: 0}, Changes: []Change{}},
		{Op: Turn, Epoch: 2, Partition: p, Agent: "k\x00\xff", ID: "id", Method: "m", Revision: 7, Changes: []Change{
			{Kind: Set, Key: []byte("a"), Value: []byte{}}, {Kind: Set, Key: []byte{}, Value: bytes.Repeat([]byte("v"), 300)},
			{Kind: Delete, Key: []byte("\x00")}, {Kind: Cut, Key: []byte("b"), Value: []byte("c")}}},
	}
}

func TestEntries(t *testing.T) {
	for _, e := range samples() {
		b := e.Append([]byte("before"))
		got, err := Decode(b[6:])
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, e) {
			t.Errorf("%+v became %+v", e, got)
		}
		// S1: what is cut, or has more, is no entry.
		b = b[6:]
		for n := range min(len(b), 300) {
			if _, err := Decode(b[:n]); lode.KindOf(err) != lode.Damaged {
				t.Errorf("the first %d bytes of op %d: %v", n, e.Op, err)
			}
		}
		if _, err := Decode(append(b, 0)); lode.KindOf(err) != lode.Damaged {
			t.Errorf("a byte more: %v", err)
		}
	}
	if s := (Partition{"ns", "k", 65535}).String(); s != "ns/k/65535" {
		t.Error(s)
	}
}

// FuzzDecode (S1): bytes are an entry, which is written as those bytes or as
// fewer, or Damaged; nothing else happens.
func FuzzDecode(f *testing.F) {
	for _, e := range samples() {
		f.Add(e.Append(nil))
	}
	r := rand.New(rand.NewPCG(1, 1))
	for _, e := range samples() {
		b := e.Append(nil)
		b[r.IntN(len(b))] ^= byte(1 << r.IntN(8))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			if lode.KindOf(err) != lode.Damaged {
				t.Fatal(err)
			}
			return
		}
		again, err := Decode(e.Append(nil))
		if err != nil || !reflect.DeepEqual(e, again) {
			t.Fatalf("%+v became %+v, %v", e, again, err)
		}
	})
}
