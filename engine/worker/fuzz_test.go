package worker

import (
	"bytes"
	"testing"
)

// FuzzFrame: bytes from a worker that went wrong are an error, or a frame that
// can be written again.
func FuzzFrame(f *testing.F) {
	var b bytes.Buffer
	newWriter(&b).send(&frame{Kind: kInvoke, ID: 7, Call: &call{HeadLen: 4}}, []byte("body"))
	f.Add(b.Bytes())
	f.Add([]byte("\x08\x00\x00\x00\x04\x00\x00\x00null"))
	f.Add([]byte("\x05\x00\x00\x00\xff\x00\x00\x00x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 4 && b[3] > 0 {
			return // a length of megabytes: only room for it would be tested
		}
		got, err := readFrame(bytes.NewReader(b))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := newWriter(&out).send(got, got.body); err != nil {
			t.Fatal(err)
		}
		again, err := readFrame(&out)
		if err != nil || again.Kind != got.Kind || again.ID != got.ID || !bytes.Equal(again.body, got.body) {
			t.Fatalf("%+v became %+v, %v", got, again, err)
		}
	})
}
