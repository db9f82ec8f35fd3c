package store

import (
	"context"
	"io"
	"iter"
	"os"

	"lode"
)

// Dir is a home in a directory of this machine. Several processes may share
// it.
type Dir struct{ t *tree }

var (
	_ Home  = (*Dir)(nil)
	_ local = (*Dir)(nil)
)

// OpenDir opens the directory, made if it is missing, and sweeps what a killed
// process left half-written.
func OpenDir(path string) (*Dir, error) {
	t, err := openTree(path)
	if err != nil {
		return nil, err
	}
	return &Dir{t}, nil
}

func (h *Dir) files() *tree { return h.t }

// String is the absolute path.
func (h *Dir) String() string { return h.t.root }

// Put implements Home.
func (h *Dir) Put(ctx context.Context, d lode.Digest, src *io.SectionReader) error {
	sp, err := h.t.spool()
	if err != nil {
		return err
	}
	defer sp.discard()
	if _, err := io.Copy(struct{ io.Writer }{sp}, io.NewSectionReader(src, 0, src.Size())); err != nil {
		return ioError("put blob "+d.String(), err)
	}
	if err := cancelled(ctx); err != nil {
		return err
	}
	if err := sp.seal(); err != nil {
		return err
	}
	return sp.keep(h.t, d, true)
}

// Get implements Home.
func (h *Dir) Get(ctx context.Context, d lode.Digest) (io.ReadCloser, error) {
	if err := cancelled(ctx); err != nil {
		return nil, err
	}
	f, err := os.Open(h.t.path(d))
	if isMissing(err) {
		return nil, notFound(d, h.t.root)
	}
	if err != nil {
		return nil, ioError("open "+h.t.path(d), err)
	}
	return f, nil
}

// Stat implements Home.
func (h *Dir) Stat(ctx context.Context, d lode.Digest) (Info, error) {
	if err := cancelled(ctx); err != nil {
		return Info{}, err
	}
	return h.t.stat(d)
}

// Delete implements Home.
func (h *Dir) Delete(ctx context.Context, d lode.Digest) error {
	if err := cancelled(ctx); err != nil {
		return err
	}
	return h.t.remove(d)
}

// List implements Home.
func (h *Dir) List(ctx context.Context) iter.Seq2[Info, error] { return h.t.list(ctx) }
