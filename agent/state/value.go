package state

import (
	"encoding/binary"

	"lode"
)

// Values over InlineMax bytes are blobs: the state holds their names.
const InlineMax = 64 << 10

// A stored value is one byte and what follows it:
//
//	0  the value itself
//	1  32 bytes digest of a blob, u64 little-endian its size
const (
	tagInline = 0
	tagBlob   = 1
	blobLen   = 1 + len(lode.Digest{}) + 8
)

// EncodeInline is the stored form of a value that is kept here.
func EncodeInline(b []byte) []byte {
	return append(append(make([]byte, 0, 1+len(b)), tagInline), b...)
}

// EncodeBlob is the stored form of a value that is a blob of size bytes.
func EncodeBlob(d lode.Digest, size int64) []byte {
	b := append(append(make([]byte, 0, blobLen), tagBlob), d[:]...)
	return binary.LittleEndian.AppendUint64(b, uint64(size))
}

// DecodeValue reads a stored value: inline, which is part of v, or the digest
// and size of a blob. Damaged: v is neither.
func DecodeValue(v []byte) (inline []byte, d lode.Digest, size int64, blob bool, err error) {
	switch {
	case len(v) > 0 && v[0] == tagInline:
		return v[1:], d, 0, false, nil
	case len(v) == blobLen && v[0] == tagBlob:
		d, size = lode.Digest(v[1:33]), int64(binary.LittleEndian.Uint64(v[33:]))
		if size >= 0 {
			return nil, d, size, true, nil
		}
	}
	return nil, lode.Digest{}, 0, false, lode.Errorf(lode.Damaged, "%d bytes of an agent's state are no value", len(v))
}

// blobOf is the blob that a value names, if it has the form of one that does.
func blobOf(v []byte) (lode.Digest, bool) {
	if len(v) != blobLen || v[0] != tagBlob {
		return lode.Digest{}, false
	}
	return lode.Digest(v[1:33]), true
}
