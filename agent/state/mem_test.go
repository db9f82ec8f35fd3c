package state_test

import (
	"bytes"
	"context"
	"sync"

	"github.com/zeebo/blake3"

	"lode"
	"lode/agent/state"
)

// mem keeps blobs in memory, and counts.
type mem struct {
	mu         sync.Mutex
	blobs      map[lode.Digest][]byte
	puts, gets int
	put        func(n int) error // called before each Put; nil: nothing
}

var _ state.Blobs = (*mem)(nil)

func newMem() *mem { return &mem{blobs: map[lode.Digest][]byte{}} }

func (m *mem) Put(ctx context.Context, b []byte) (lode.Digest, error) {
	m.mu.Lock()
	m.puts++
	n, before := m.puts, m.put
	m.mu.Unlock()
	if before != nil {
		if err := before(n); err != nil {
			return lode.Digest{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return lode.Digest{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d := lode.Digest(blake3.Sum256(b))
	m.blobs[d] = bytes.Clone(b)
	return d, nil
}

func (m *mem) Get(ctx context.Context, d lode.Digest) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gets++
	b, ok := m.blobs[d]
	if !ok {
		return nil, lode.Errorf(lode.NotFound, "blob %s is not in memory", d)
	}
	return bytes.Clone(b), nil
}

// keep forgets all blobs but those.
func (m *mem) keep(ds ...lode.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := map[lode.Digest][]byte{}
	for _, d := range ds {
		if b, ok := m.blobs[d]; ok {
			left[d] = b
		}
	}
	m.blobs = left
}
