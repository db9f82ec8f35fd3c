package replica

import (
	"bytes"
	"testing"
	"time"

	"lode"
	"lode/store"
)

func TestHeadsToTheByte(t *testing.T) {
	d := lode.Digest(bytes.Repeat([]byte{0xd1}, 32))
	at := time.Unix(0, 0x0102030405060708)
	r := request{store: "shards", digest: d, size: 0x11, modified: at, flags: flagRepair | flagOffer}
	name := append([]byte{6}, "shards"...)
	size, when := []byte{0, 0, 0, 0, 0, 0, 0, 0x11}, []byte{1, 2, 3, 4, 5, 6, 7, 8}
	for method, want := range map[string][][]byte{
		methodPut: {name, d[:], size, when, {3}}, methodGet: {name, d[:]}, methodHave: {name, {3}}, methodStat: {name, d[:]},
		methodDelete: {name, d[:], when}, methodList: {name}, methodBad: {name, d[:]},
	} {
		head := appendRequest(nil, method, r)
		if want := bytes.Join(want, nil); !bytes.Equal(head, want) {
			t.Errorf("%s: % x, want % x", method, head, want)
		}
		for n := range head {
			if _, err := parseRequest(method, head[:n]); err == nil {
				t.Errorf("%s: %d of %d bytes were taken", method, n, len(head))
			}
		}
		if _, err := parseRequest(method, append(head, 0)); err == nil {
			t.Errorf("%s: a byte too many was taken", method)
		}
	}
}

// FuzzRequest: what parses is written back as it was.
func FuzzRequest(f *testing.F) {
	for i, l := range layouts {
		f.Add(uint8(i), appendRequest(nil, l.method, request{store: "artifacts", size: 1, modified: time.Unix(1, 2), flags: 1}))
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{255, 1})
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		method := layouts[int(which)%len(layouts)].method
		r, err := parseRequest(method, b)
		if err != nil {
			if lode.KindOf(err) != lode.Invalid {
				t.Errorf("kind %s", lode.KindOf(err))
			}
			return
		}
		if got := appendRequest(nil, method, r); !bytes.Equal(got, b) {
			t.Errorf("% x came back as % x", b, got)
		}
	})
}

// FuzzBodies: the same for what is not a request's head.
func FuzzBodies(f *testing.F) {
	info := store.Info{Digest: lode.Digest{1}, Size: 7, Modified: time.Unix(3, 4)}
	f.Add(appendInfo(nil, info))
	f.Add(appendPlace(nil, info))
	f.Add(appendQueries(nil, []store.Query{{Digest: lode.Digest{1}, Modified: time.Unix(5, 6)}, {}}))
	f.Add([]byte{0, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		if info, err := parseInfo(b); err == nil && !bytes.Equal(appendInfo(nil, info), b) {
			t.Errorf("info % x", b)
		}
		if info, err := parsePlace(lode.Digest{}, b); err == nil && !bytes.Equal(appendPlace(nil, info), b) {
			t.Errorf("place % x", b)
		}
		if qs, err := parseQueries(b); err == nil && !bytes.Equal(appendQueries(nil, qs), b) {
			t.Errorf("queries % x", b)
		}
		if held, err := parseHeld(b, len(b)); err == nil && len(held) != len(b) {
			t.Errorf("held % x", b)
		}
		var infos []store.Info
		r := &records{yield: func(i store.Info, err error) bool { infos = append(infos, i); return true }}
		if _, err := r.Write(b); err == nil && (len(infos) != len(b)/infoSize || len(r.part) != len(b)%infoSize) {
			t.Errorf("%d records of %d bytes", len(infos), len(b))
		}
	})
}
