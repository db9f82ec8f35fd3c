package store

import (
	"bytes"
	"context"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"lode"
)

// Mem is a home in memory: as durable as its process, for tests and throw-away
// nodes. The zero value is empty and ready.
type Mem struct {
	mu    sync.Mutex
	blobs map[lode.Digest]memBlob
}

type memBlob struct {
	content  []byte
	modified time.Time
}

var _ Home = (*Mem)(nil)

// String is "memory".
func (m *Mem) String() string { return "memory" }

// Put implements Home.
func (m *Mem) Put(ctx context.Context, d lode.Digest, src *io.SectionReader) error {
	b := make([]byte, src.Size())
	if _, err := src.ReadAt(b, 0); err != nil && err != io.EOF {
		return ioError("put blob "+d.String(), err)
	}
	if err := cancelled(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blobs == nil {
		m.blobs = map[lode.Digest]memBlob{}
	}
	m.blobs[d] = memBlob{b, time.Now()}
	return nil
}

func (m *Mem) get(ctx context.Context, d lode.Digest) (memBlob, error) {
	if err := cancelled(ctx); err != nil {
		return memBlob{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[d]
	if !ok {
		return b, notFound(d, m.String())
	}
	return b, nil
}

// Get implements Home.
func (m *Mem) Get(ctx context.Context, d lode.Digest) (io.ReadCloser, error) {
	b, err := m.get(ctx, d)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b.content)), nil
}

// Stat implements Home.
func (m *Mem) Stat(ctx context.Context, d lode.Digest) (Info, error) {
	b, err := m.get(ctx, d)
	if err != nil {
		return Info{}, err
	}
	return Info{d, int64(len(b.content)), b.modified}, nil
}

// Delete implements Home.
func (m *Mem) Delete(ctx context.Context, d lode.Digest) error {
	if err := cancelled(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blobs, d)
	return nil
}

// List implements Home.
func (m *Mem) List(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		m.mu.Lock()
		blobs := maps.Clone(m.blobs)
		m.mu.Unlock()
		for _, d := range slices.Collect(maps.Keys(blobs)) {
			if err := cancelled(ctx); err != nil {
				yield(Info{}, err)
				return
			}
			if !yield(Info{d, int64(len(blobs[d].content)), blobs[d].modified}, nil) {
				return
			}
		}
	}
}
