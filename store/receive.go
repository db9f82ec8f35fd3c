package store

import (
	"context"
	"io"
	"os"
	"time"

	"lode"
)

// behind is how far in the past a put may be dated: the clock of a node that is
// further behind would make what it puts look old enough to be collected.
const behind = time.Hour

// admits is the time that a put of d gets here, or Gone.
func (s *Shelf) admits(d lode.Digest, as PutAs) (time.Time, error) {
	cut, at := s.cutoff(d), as.Modified
	if as.Repair {
		if !cut.Before(at) {
			return at, lode.Errorf(lode.Gone, "blob %s was deleted after this copy of it was put", d)
		}
		return at, nil
	}
	if now := time.Now(); now.Sub(at) > behind {
		at = now
	}
	if !cut.Before(at) {
		at = cut.Add(1)
	}
	return at, nil
}

// Offer takes a blob that is here already and whole, makes it as young as the
// offer, durably, and reports that it did; false asks for the content.
func (s *Shelf) Offer(ctx context.Context, d lode.Digest, as PutAs) (Info, bool, error) {
	if err := s.takes(); err != nil {
		return Info{}, false, err
	}
	if _, err := s.admits(d, as); err != nil {
		return Info{}, false, err
	}
	f, err := s.own.open(ctx, d)
	switch lode.KindOf(err) {
	case "":
	case lode.NotFound:
		return s.promote(ctx, d, as)
	case lode.Damaged:
		s.setAside(d, err)
		return Info{}, false, nil
	default:
		return Info{}, false, err
	}
	defer f.Close()
	info, err := s.renew(d, as)
	if lode.KindOf(err) == lode.NotFound {
		return Info{}, false, nil // deleted or dropped meanwhile
	}
	if err == nil {
		err = ioError("sync "+f.Name(), f.Sync())
	}
	return info, err == nil, err
}

// promote makes a replica of a cached copy; false where there is none.
func (s *Shelf) promote(ctx context.Context, d lode.Digest, as PutAs) (Info, bool, error) {
	st := s.of()
	if st == nil || st.cache == nil {
		return Info{}, false, nil
	}
	f, err := st.cache.open(ctx, d)
	if err != nil {
		return Info{}, false, nil
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return Info{}, false, ioError("stat "+f.Name(), err)
	}
	info, err := s.Receive(ctx, d, f, fi.Size(), as)
	return info, err == nil, err
}

// uncache drops the copy of what is a replica now.
func (s *Shelf) uncache(d lode.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.store; st != nil && st.cache != nil && !s.open(d) {
		st.forget(d)
		if err := st.cache.remove(d); err != nil {
			s.log.Warn("a cached blob could not be removed", "err", err)
		}
	}
}

// renew gives d's file, which was just verified, the time of a put.
func (s *Shelf) renew(d lode.Digest, as PutAs) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := s.own.path(d)
	fi, err := os.Stat(path)
	if isMissing(err) {
		return Info{}, notFound(d, s.own.root)
	}
	if err != nil {
		return Info{}, ioError("stat "+path, err)
	}
	at, err := s.admits(d, as)
	if err != nil {
		return Info{}, err
	}
	delete(s.leaving, d)
	info := Info{Digest: d, Size: fi.Size(), Modified: fi.ModTime()}
	if !at.After(info.Modified) {
		return info, nil
	}
	whole := s.own.holds(d, stampOf(fi))
	if err := os.Chtimes(path, at, at); err != nil {
		return Info{}, ioError("renew "+path, err)
	}
	if fi, err = os.Stat(path); err == nil && whole {
		s.own.seen(d, stampOf(fi))
	}
	info.Modified = at
	return info, ioError("stat "+path, err)
}

// Put implements Remote, for this node itself.
func (s *Shelf) Put(ctx context.Context, d lode.Digest, src *io.SectionReader, as PutAs) (Info, error) {
	info, ok, err := s.Offer(ctx, d, as)
	if ok || err != nil {
		return info, err
	}
	return s.Receive(ctx, d, io.NewSectionReader(src, 0, src.Size()), src.Size(), as)
}

// Receive makes what r yields the replica of d: of that size, verified while
// it is written, durable when Receive returns.
func (s *Shelf) Receive(ctx context.Context, d lode.Digest, r io.Reader, size int64, as PutAs) (Info, error) {
	if err := s.takes(); err != nil {
		return Info{}, err
	}
	end, err := s.begin(d, as)
	if err != nil {
		return Info{}, err
	}
	defer end()
	sp, err := s.own.spool()
	if err != nil {
		return Info{}, err
	}
	defer sp.discard()
	n, err := io.CopyBuffer(&exactly{sp, size}, r, make([]byte, 256<<10))
	if cerr := cancelled(ctx); cerr != nil {
		return Info{}, cerr
	}
	if err != nil {
		return Info{}, ioError("put blob "+d.String(), err)
	}
	if got := sp.digest(); n != size || got != d {
		return Info{}, damaged(d, "what was sent to "+s.own.root, got, n)
	}
	return s.place(d, sp, as)
}

// exactly takes no more than was announced.
type exactly struct {
	to   *spool
	left int64
}

func (e *exactly) Write(p []byte) (int, error) {
	if e.left -= int64(len(p)); e.left < 0 {
		return 0, lode.Errorf(lode.Damaged, "more bytes came than were announced")
	}
	return e.to.Write(p)
}

// begin marks a blob as being received. Of a repair there is one at a time:
// several nodes may have found the same copy missing.
func (s *Shelf) begin(d lode.Digest, as PutAs) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if as.Repair && s.receiving[d] > 0 {
		return nil, lode.Errorf(lode.Conflict, "blob %s is being received from another node", d)
	}
	s.receiving[d]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.receiving[d]--; s.receiving[d] == 0 {
			delete(s.receiving, d)
		}
	}, nil
}

// place makes a verified spool the replica of d. A deletion or a younger put
// that comes while the content is synced moves the time once more.
func (s *Shelf) place(d lode.Digest, sp *spool, as PutAs) (Info, error) {
	for {
		at, err := s.admits(d, as)
		if err != nil {
			return Info{}, err
		}
		if here, err := s.own.stat(d); err == nil && here.Modified.After(at) {
			at = here.Modified
		}
		if err := os.Chtimes(sp.f.Name(), at, at); err != nil {
			return Info{}, ioError("write to "+s.own.root, err)
		}
		if err := sp.seal(); err != nil {
			return Info{}, err
		}
		done, err := s.name(d, sp, at)
		if err != nil {
			return Info{}, err
		}
		if done {
			s.uncache(d)
			return Info{Digest: d, Size: sp.size, Modified: at}, ioError("write to "+s.own.root, s.own.syncNames(d))
		}
	}
}

// name gives the spool its name unless its time has been overtaken.
func (s *Shelf) name(d lode.Digest, sp *spool, at time.Time) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.cutoff(d).Before(at) {
		return false, nil
	}
	if here, err := s.own.stat(d); err == nil && here.Modified.After(at) {
		return false, nil
	}
	if err := sp.keep(s.own, d, false); err != nil {
		return false, err
	}
	delete(s.leaving, d)
	if err := s.dead.end(d, time.Now()); err != nil {
		s.log.Warn("the end of a deletion could not be recorded", "digest", d, "err", err)
	}
	return true, nil
}
