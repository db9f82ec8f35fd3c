package state_test

import (
	"bytes"
	"reflect"
	"testing"

	"lode"
	"lode/agent/state"
)

// FuzzManifest: bytes are a manifest, which survives being written and read,
// or Damaged.
func FuzzManifest(f *testing.F) {
	m := &state.Manifest{Part: p1, Mark: state.Mark{Epoch: 3, Journal: "n1", Pos: 1 << 40}}
	f.Add(m.Encode())
	m.Segments = []state.Segment{
		{Digest: lode.Digest{1}, Bytes: 100, Keys: 3, First: []byte{}},
		{Digest: lode.Digest{2}, Bytes: 1 << 20, Keys: 300, First: []byte("b"), Blobs: []lode.Digest{{3}, {4}}},
	}
	f.Add(m.Encode())
	f.Add([]byte{})
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := state.DecodeManifest(b)
		if err != nil {
			wantKind(t, err, lode.Damaged)
			return
		}
		again, err := state.DecodeManifest(m.Encode())
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%v\n%+v\n%+v", err, m, again)
		}
		for i := range m.Segments {
			if i > 0 && bytes.Compare(m.Segments[i-1].First, m.Segments[i].First) >= 0 {
				t.Fatal("segments are not in order")
			}
		}
		m.Blobs()
	})
}

// FuzzSegment: bytes are rows in order, or Damaged.
func FuzzSegment(f *testing.F) {
	f.Add([]byte{1})
	f.Add([]byte("\x01\x01a\x011\x01b\x00"))
	f.Add([]byte("\x01\x01b\x011\x01a\x00"))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		var last []byte
		n := 0
		err := state.ReadSegment(b, func(k, v []byte) error {
			if n > 0 && bytes.Compare(last, k) >= 0 {
				t.Fatalf("%q after %q", k, last)
			}
			last = k
			n++
			return nil
		})
		if err != nil {
			wantKind(t, err, lode.Damaged)
		}
	})
}

// FuzzValue: bytes are a value, which is the same when it is written again, or
// Damaged.
func FuzzValue(f *testing.F) {
	f.Add(state.EncodeInline(nil))
	f.Add(state.EncodeBlob(lode.Digest{1}, 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		inline, d, size, blob, err := state.DecodeValue(b)
		if err != nil {
			wantKind(t, err, lode.Damaged)
			return
		}
		again := state.EncodeInline(inline)
		if blob {
			again = state.EncodeBlob(d, size)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
