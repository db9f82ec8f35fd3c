package state

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/zeebo/blake3"

	"lode"
	"lode/agent/journal"
)

// Blobs is where snapshots are kept. Put returns when the bytes are durable;
// putting the same bytes again is no error. Get returns all bytes of a blob,
// for the caller to keep; they are checked again here. Both may be called from
// many goroutines.
type Blobs interface {
	Put(ctx context.Context, b []byte) (lode.Digest, error)
	Get(ctx context.Context, d lode.Digest) ([]byte, error)
}

// Manifest is a snapshot of a partition: runs of its keys, in order. Its bytes,
// integers little-endian, strings a uvarint length and bytes:
//
//	u8 1, string namespace, string kind, uvarint n
//	u64 epoch, u64 pos, string journal            the Mark that it covers
//	uvarint number of segments, and for each:
//	    32 bytes digest, uvarint bytes, uvarint keys, string first key
//	    uvarint number of blobs that its values name, 32 bytes each, in order
type Manifest struct {
	Part     journal.Partition
	Mark     Mark
	Segments []Segment
}

// Segment is one run of keys: a blob.
type Segment struct {
	Digest lode.Digest
	Bytes  int64         // of the blob
	Keys   int           // at least 1
	First  []byte        // its first key; greater than all keys of the segment before
	Blobs  []lode.Digest // blobs that its values name, sorted
}

const manifestVersion = 1

// Blobs are the digests of everything that the snapshot needs beside the
// manifest itself, sorted: segments and the blobs that values name.
func (m *Manifest) Blobs() []lode.Digest {
	var ds []lode.Digest
	for i := range m.Segments {
		ds = append(append(ds, m.Segments[i].Digest), m.Segments[i].Blobs...)
	}
	slices.SortFunc(ds, compareDigests)
	return slices.Compact(ds)
}

// Bytes is how long the segments are together; Keys how many keys they have.
func (m *Manifest) Bytes() (n int64) {
	for i := range m.Segments {
		n += m.Segments[i].Bytes
	}
	return n
}

// Keys is how many keys the snapshot has.
func (m *Manifest) Keys() (n int) {
	for i := range m.Segments {
		n += m.Segments[i].Keys
	}
	return n
}

func (m *Manifest) encode() []byte {
	b := []byte{manifestVersion}
	b = journal.AppendString(b, m.Part.Namespace)
	b = journal.AppendString(b, m.Part.Kind)
	b = binary.AppendUvarint(b, uint64(m.Part.N))
	b = binary.LittleEndian.AppendUint64(b, m.Mark.Epoch)
	b = binary.LittleEndian.AppendUint64(b, m.Mark.Pos)
	b = journal.AppendString(b, m.Mark.Journal)
	b = binary.AppendUvarint(b, uint64(len(m.Segments)))
	for i := range m.Segments {
		s := &m.Segments[i]
		b = append(b, s.Digest[:]...)
		b = binary.AppendUvarint(b, uint64(s.Bytes))
		b = binary.AppendUvarint(b, uint64(s.Keys))
		b = journal.AppendString(b, s.First)
		b = binary.AppendUvarint(b, uint64(len(s.Blobs)))
		for _, d := range s.Blobs {
			b = append(b, d[:]...)
		}
	}
	return b
}

// decodeManifest reads what encode wrote. First keys are parts of b. Damaged:
// b is no manifest.
func decodeManifest(b []byte) (*Manifest, error) {
	if len(b) == 0 || b[0] != manifestVersion {
		return nil, lode.Errorf(lode.Damaged, "%d bytes are no manifest of a snapshot", len(b))
	}
	r := journal.Reader{B: b[1:]}
	m := &Manifest{Part: journal.Partition{Namespace: lode.Namespace(r.Bytes()), Kind: lode.Name(r.Bytes()), N: r.Number()}}
	m.Mark = Mark{Epoch: r.U64(), Pos: r.U64()}
	m.Mark.Journal = lode.NodeID(r.Bytes())
	for n := r.Number(); n > 0 && !r.Bad; n-- {
		s := Segment{Digest: readDigest(&r), Bytes: int64(r.Number()), Keys: r.Number(), First: r.Bytes()}
		for k := r.Number(); k > 0 && !r.Bad; k-- {
			s.Blobs = append(s.Blobs, readDigest(&r))
		}
		last := len(m.Segments) - 1
		if s.Keys == 0 || last >= 0 && string(s.First) <= string(m.Segments[last].First) || !slices.IsSortedFunc(s.Blobs, compareDigests) {
			r.Bad = true
		}
		m.Segments = append(m.Segments, s)
	}
	if !r.End() || !nameable(m.Part) {
		return nil, lode.Errorf(lode.Damaged, "%d bytes are no manifest of a snapshot", len(b))
	}
	return m, nil
}

func readDigest(r *journal.Reader) (d lode.Digest) {
	copy(d[:], r.Take(uint64(len(d))))
	return d
}

// ReadManifest reads a snapshot's manifest. Damaged: its bytes are not those
// of the digest, or no manifest.
func ReadManifest(ctx context.Context, b Blobs, d lode.Digest) (*Manifest, error) {
	raw, err := get(ctx, b, d)
	if err != nil {
		return nil, named(err, "the manifest of a snapshot")
	}
	m, err := decodeManifest(raw)
	if err != nil {
		return nil, named(err, "blob "+d.String())
	}
	return m, nil
}

// get is a blob whose bytes are those of its digest.
func get(ctx context.Context, b Blobs, d lode.Digest) ([]byte, error) {
	raw, err := b.Get(ctx, d)
	if err != nil {
		return nil, err
	}
	if got := lode.Digest(blake3.Sum256(raw)); got != d {
		return nil, lode.Errorf(lode.Damaged, "blob %s is damaged: its %d bytes have digest %s", d, len(raw), got)
	}
	return raw, nil
}

// put is Put, checked: it returns d.
func put(ctx context.Context, b Blobs, d lode.Digest, raw []byte) error {
	got, err := b.Put(ctx, raw)
	if err == nil && got != d {
		err = lode.Errorf(lode.Internal, "blob %s was stored as %s", d, got)
	}
	return err
}

// named says of which thing an error is; it keeps its kind and hint.
func named(err error, what string) error {
	e := lode.Errorf(lode.KindOf(err), "%s: %w", what, err)
	if c := lode.AsError(err); c.Hint != "" {
		e.Hint = c.Hint
	}
	return e
}
