package data

import (
	"context"
	"encoding/json"
	"io"

	"lode"
)

// Cat writes the bytes of a version in order: the csv header, then the shards.
func (s *Datasets) Cat(ctx context.Context, m *lode.Manifest, w io.Writer) error {
	if _, err := w.Write(m.Header); err != nil {
		return err
	}
	for i := range m.Shards {
		if err := s.CatShard(ctx, m, i, w); err != nil {
			return err
		}
	}
	return nil
}

// CatShard writes the bytes of one shard, without a header. A damaged shard is
// named by its number.
func (s *Datasets) CatShard(ctx context.Context, m *lode.Manifest, i int, w io.Writer) error {
	if i < 0 || i >= len(m.Shards) {
		return noShard(m, i)
	}
	b, err := s.store.Open(ctx, m.Shards[i].Digest)
	if err != nil {
		return nameShard(m, i, err)
	}
	defer b.Close()
	_, err = io.Copy(w, struct{ io.Reader }{b})
	return err
}

func noShard(m *lode.Manifest, i int) error {
	return lode.Errorf(lode.NotFound, "version %d of dataset %s has no shard %d", m.Version, m.Name, i).
		WithHint("it has %d, counted from 0", len(m.Shards))
}

// nameShard puts the shard's number in front of what a store said of its blob.
func nameShard(m *lode.Manifest, i int, err error) error {
	e := lode.AsError(err)
	if e.Kind != lode.Damaged && e.Kind != lode.NotFound {
		return err
	}
	kind := e.Kind
	if kind == lode.NotFound {
		kind = lode.Damaged // the manifest promises it
	}
	named := lode.Errorf(kind, "shard %d of dataset %s, version %d: %w", i, m.Name, m.Version, err)
	named.Hint = e.Hint
	return named
}

// Files emits the files of a version in order; r is valid until emit returns,
// and emit's error ends the walk. A dataset of another form than files is one
// file of the dataset's name. Of files that were put under one name by
// several appends all are emitted, the newest last.
func (s *Datasets) Files(ctx context.Context, m *lode.Manifest, emit func(name string, size int64, r io.Reader) error) error {
	if m.Records != lode.RecordsFiles {
		return s.oneFile(ctx, m, emit)
	}
	for i := range m.Shards {
		if err := s.shardFiles(ctx, m, i, emit); err != nil {
			return err
		}
	}
	return nil
}

// oneFile emits what Cat writes as a single reader.
func (s *Datasets) oneFile(ctx context.Context, m *lode.Manifest, emit func(string, int64, io.Reader) error) error {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(s.Cat(ctx, m, w))
	}()
	err := emit(string(m.Name), int64(len(m.Header))+m.Bytes, r)
	r.Close() // ends a Cat that emit did not read to its end
	<-done
	return err
}

func (s *Datasets) shardFiles(ctx context.Context, m *lode.Manifest, i int, emit func(string, int64, io.Reader) error) error {
	b, err := s.store.Open(ctx, m.Shards[i].Digest)
	if err != nil {
		return nameShard(m, i, err)
	}
	defer b.Close()
	idx, err := s.Index(ctx, m, i)
	if err != nil {
		return err
	}
	begin := int64(0)
	for k, end := range idx.Ends {
		if err := emit(idx.Names[k], end-begin, io.NewSectionReader(b, begin, end-begin)); err != nil {
			return err
		}
		begin = end
	}
	return nil
}

// Index returns the names and borders of a shard of form files.
func (s *Datasets) Index(ctx context.Context, m *lode.Manifest, i int) (lode.FileIndex, error) {
	var idx lode.FileIndex
	if i < 0 || i >= len(m.Shards) {
		return idx, noShard(m, i)
	}
	if m.Shards[i].Index.IsZero() {
		return idx, lode.Errorf(lode.Invalid, "dataset %s has records %s: its shards have no file index", m.Name, m.Records)
	}
	idx, err := s.ReadIndex(ctx, m.Shards[i])
	if err != nil {
		return idx, nameShard(m, i, err)
	}
	return idx, nil
}

// ReadIndex is Index for one who has the shard and not its manifest.
func (s *Datasets) ReadIndex(ctx context.Context, shard lode.Shard) (lode.FileIndex, error) {
	var idx lode.FileIndex
	b, err := s.store.ReadAll(ctx, shard.Index, 256<<20)
	if err != nil {
		return idx, err
	}
	if err := json.Unmarshal(b, &idx); err != nil {
		return idx, lode.Errorf(lode.Damaged, "index %s: %w", shard.Index, err)
	}
	return idx, checkIndex(idx, shard.Bytes)
}
