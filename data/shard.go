package data

import (
	"context"
	"io"

	"lode"
)

// Version finds a kept version; 0 is the newest.
func (h *Head) Version(number int) (*Version, error) { return h.find(number) }

// ReadShard returns up to length bytes of shard i of m from offset; fewer only
// at the shard's end.
func (s *Datasets) ReadShard(ctx context.Context, m *lode.Manifest, i int, offset, length int64) ([]byte, error) {
	if i < 0 || i >= len(m.Shards) {
		return nil, noShard(m, i)
	}
	sh := m.Shards[i]
	if offset < 0 || length < 0 || offset > sh.Bytes {
		return nil, lode.Errorf(lode.Invalid, "shard %d of dataset %s has %d bytes: nothing at offset %d", i, m.Name, sh.Bytes, offset)
	}
	b, err := s.store.Open(ctx, sh.Digest)
	if err != nil {
		return nil, nameShard(m, i, err)
	}
	defer b.Close()
	p := make([]byte, min(length, sh.Bytes-offset))
	if _, err := io.ReadFull(io.NewSectionReader(b, offset, int64(len(p))), p); err != nil {
		return nil, nameShard(m, i, lode.Errorf(lode.Damaged, "read %d bytes at %d of %s: %w", len(p), offset, b.Path(), err))
	}
	return p, nil
}
