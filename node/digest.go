package node

import (
	"io"

	"github.com/zeebo/blake3"

	"lode"
)

// digestReader passes bytes on and, at their end, fails unless they have the
// digest and the size that were promised.
type digestReader struct {
	r    io.Reader
	h    *blake3.Hasher
	want lode.Digest
	size int64 // -1: not known
	n    int64
}

func newDigestReader(r io.Reader, want lode.Digest, size int64) *digestReader {
	return &digestReader{r: r, h: blake3.New(), want: want, size: size}
}

func (d *digestReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.h.Write(p[:n])
	d.n += int64(n)
	if err != io.EOF {
		return n, err
	}
	if d.size >= 0 && d.n != d.size {
		return n, lode.Errorf(lode.Invalid, "the upload was cut short: %d of %d bytes came", d.n, d.size).WithHint("send it again")
	}
	if got := lode.Digest(d.h.Sum(nil)); got != d.want {
		return n, lode.Errorf(lode.Damaged, "the bytes that came have digest %s, not %s", got.Short(), d.want.Short()).WithHint("send them again")
	}
	return n, io.EOF
}
