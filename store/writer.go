package store

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/zeebo/blake3"

	"lode"
)

// spool is a temporary file of a tree that hashes what is written to it.
type spool struct {
	t    *tree
	f    *os.File
	h    *blake3.Hasher
	size int64
	over bool // renamed or removed
	shut bool // closed
}

func (t *tree) spool() (*spool, error) {
	for {
		f, err := os.CreateTemp(filepath.Join(t.root, "tmp"), "w-*")
		if err != nil {
			return nil, ioError("write to "+t.root, err)
		}
		// A sweep by another process may see the file before it is locked.
		if lockFile(f) == nil && linked(f) {
			return &spool{t: t, f: f, h: blake3.New()}, nil
		}
		os.Remove(f.Name())
		f.Close()
	}
}

// spool is a temporary file where the blob most likely stays.
func (s *Store) spool() (*spool, error) {
	if s.own != nil {
		return s.own.spool()
	}
	return s.cache.spool()
}

func (s *spool) Write(p []byte) (int, error) {
	n, err := s.f.Write(p)
	s.h.Write(p[:n])
	s.size += int64(n)
	if err != nil {
		return n, ioError("write to "+s.t.root, err)
	}
	return n, nil
}

func (s *spool) digest() (d lode.Digest) {
	s.h.Sum(d[:0])
	return d
}

// seal makes the content durable and read-only.
func (s *spool) seal() error {
	if err := s.f.Chmod(0o444); err != nil {
		return ioError("write to "+s.t.root, err)
	}
	return ioError("write to "+s.t.root, s.f.Sync())
}

// keep names the file d in t, which remembers it as whole. The file stays open
// for reading until discard.
func (s *spool) keep(t *tree, d lode.Digest, sync bool) error {
	fi, err := s.f.Stat()
	if err == nil {
		err = t.adopt(s.f.Name(), d, sync)
	}
	if err != nil {
		return ioError("write to "+t.root, err)
	}
	s.over = true
	t.seen(d, stampOf(fi))
	return nil
}

// discard ends the spool and removes what was not kept. Idempotent.
func (s *spool) discard() {
	if !s.over {
		s.over = true
		os.Remove(s.f.Name())
	}
	if !s.shut {
		s.shut = true
		s.f.Close()
	}
}

// Writer writes one blob whose name is not known yet. It is for one goroutine.
// Every Writer ends in Commit or Abort.
type Writer struct {
	s   *Store
	ctx context.Context
	sp  *spool
	err error
}

// Create begins a blob. Nothing is visible before Commit returns.
func (s *Store) Create(ctx context.Context) (*Writer, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	sp, err := s.spool()
	if err != nil {
		return nil, err
	}
	return &Writer{s: s, ctx: ctx, sp: sp}, nil
}

// Write appends. After an error every later call fails with it, and so does
// Commit.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err == nil {
		w.err = cancelled(w.ctx)
	}
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.sp.Write(p)
	if lode.KindOf(err) == lode.Full && w.s.cache != nil {
		w.s.shrink() // the cache makes room for what is new
		var more int
		more, err = w.sp.Write(p[n:])
		n += more
	}
	w.err = err
	return n, err
}

// Size is the bytes written so far.
func (w *Writer) Size() int64 { return w.sp.size }

// Commit makes the blob durable at its home and then visible, and names it.
// After an error nothing is left behind.
func (w *Writer) Commit() (lode.Digest, int64, error) {
	defer w.Abort()
	if w.err != nil {
		return lode.Digest{}, 0, w.err
	}
	w.err = lode.Errorf(lode.Internal, "the blob is committed or aborted already")
	d, size := w.sp.digest(), w.sp.size
	if err := cancelled(w.ctx); err != nil {
		return lode.Digest{}, 0, err
	}
	if err := w.s.commit(w.ctx, d, w.sp); err != nil {
		return lode.Digest{}, 0, err
	}
	return d, size, nil
}

// Abort forgets the blob. After Commit it does nothing.
func (w *Writer) Abort() {
	w.sp.discard()
	if w.err == nil {
		w.err = lode.Errorf(lode.Internal, "the blob is committed or aborted already")
	}
}

// commit gives a spooled blob to its home, under the key lock so that Collect
// cannot take it for an old one.
func (s *Store) commit(ctx context.Context, d lode.Digest, sp *spool) error {
	unlock, err := s.lock(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	if s.cache == nil {
		if err := sp.seal(); err != nil {
			return err
		}
		return sp.keep(s.own, d, true)
	}
	if s.replicas != nil {
		err = s.replicas.put(ctx, d, io.NewSectionReader(sp.f, 0, sp.size), sp)
	} else if err = s.home.Put(ctx, d, io.NewSectionReader(sp.f, 0, sp.size)); err == nil {
		s.sent.Add(sp.size)
	}
	if err != nil || sp.over {
		return err
	}
	if err := s.admit(d, sp); err != nil {
		s.log.Warn("a blob was put but not cached", "digest", d, "err", err)
	}
	return nil
}
