package data

import (
	"context"
	"encoding/json"
	"iter"
	"time"

	"lode"
)

// DefaultUndo is how long a removed dataset can be brought back.
const DefaultUndo = 7 * 24 * time.Hour

// removed is what the register of a removed dataset holds.
type removed struct {
	Head Head      `json:"head"`
	At   time.Time `json:"at"`
}

// removedPrefix is where the registers of removed datasets are. No namespace
// begins with a hyphen.
const removedPrefix = "-removed/"

// Remove removes a dataset and returns what it was. With data, its bytes go at
// the next Collect behind the grace period, unless something else names them;
// else Restore brings it back for DefaultUndo. Of several removals of one name
// the newest can be undone.
func (s *Datasets) Remove(ctx context.Context, ns lode.Namespace, name lode.Name, withData bool) (*Head, error) {
	h, _, err := s.load(ctx, ns, name)
	if err != nil {
		return nil, err
	}
	away := removedPrefix + key(ns, name)
	if withData {
		err = s.regs.Delete(ctx, away)
	} else {
		err = s.setAside(ctx, away, removed{*h, s.now().UTC()})
	}
	if err != nil {
		return nil, err
	}
	return h, s.regs.Delete(ctx, key(ns, name))
}

// setAside writes a register whatever it was.
func (s *Datasets) setAside(ctx context.Context, key string, r removed) error {
	value, err := json.Marshal(r)
	if err != nil {
		return lode.Errorf(lode.Internal, "write register %s: %w", key, err)
	}
	for {
		_, rev, ok, err := s.regs.Get(ctx, key)
		if err != nil {
			return err
		}
		if !ok {
			rev = 0
		}
		_, err = s.regs.Swap(ctx, key, value, rev)
		if k := lode.KindOf(err); k != lode.Precondition && k != lode.Conflict {
			return err
		}
	}
}

// Restore brings back a dataset that was removed without its data: NotFound if
// there is none, Conflict if the name is taken again.
func (s *Datasets) Restore(ctx context.Context, ns lode.Namespace, name lode.Name) (*Head, error) {
	away := removedPrefix + key(ns, name)
	value, _, ok, err := s.regs.Get(ctx, away)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, lode.Errorf(lode.NotFound, "no removed dataset %q is kept in namespace %s", name, ns).WithHint("a dataset removed with its data cannot be brought back")
	}
	var r removed
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, lode.Errorf(lode.Damaged, "register %s: %w", away, err)
	}
	head, err := json.Marshal(r.Head)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "write the head of %s: %w", name, err)
	}
	_, err = s.regs.Swap(ctx, key(ns, name), head, 0)
	if k := lode.KindOf(err); k == lode.Precondition || k == lode.Conflict {
		return nil, lode.Errorf(lode.Conflict, "there is a dataset %s again", name).WithHint("remove it first")
	}
	if err != nil {
		return nil, err
	}
	return &r.Head, s.regs.Delete(ctx, away)
}

// expire forgets what was removed too long ago and returns what can still be
// brought back.
func (s *Datasets) expire(ctx context.Context) ([]Head, error) {
	regs, err := s.regs.List(ctx, removedPrefix)
	if err != nil {
		return nil, err
	}
	var kept []Head
	for _, reg := range regs {
		var r removed
		if err := json.Unmarshal(reg.Value, &r); err != nil {
			return nil, lode.Errorf(lode.Damaged, "register %s: %w", reg.Key, err)
		}
		if s.now().Sub(r.At) < DefaultUndo {
			kept = append(kept, r.Head)
		} else if err := s.regs.Delete(ctx, reg.Key); err != nil {
			return nil, err
		}
	}
	return kept, nil
}

// RemoveVersion drops one old version; the newest is a Conflict.
func (s *Datasets) RemoveVersion(ctx context.Context, ns lode.Namespace, name lode.Name, version int) error {
	for {
		h, rev, err := s.load(ctx, ns, name)
		if err != nil {
			return err
		}
		v, err := h.find(version)
		if err != nil {
			return err
		}
		if v == h.Newest() {
			return lode.Errorf(lode.Conflict, "version %d is the newest of dataset %s", v.Number, name).WithHint("lode data rm %s removes the dataset", name)
		}
		kept := h.Versions[:0:0]
		for _, k := range h.Versions {
			if k.Number != v.Number {
				kept = append(kept, k)
			}
		}
		h.Versions = kept
		value, err := json.Marshal(h)
		if err != nil {
			return lode.Errorf(lode.Internal, "write the head of %s: %w", name, err)
		}
		_, err = s.regs.Swap(ctx, key(ns, name), value, rev)
		if k := lode.KindOf(err); k != lode.Precondition && k != lode.Conflict {
			return err
		}
	}
}

// DefaultGrace is how long bytes that nothing names are kept. A put must be
// committed within it.
const DefaultGrace = 24 * time.Hour

// Collected is what a Collect did.
type Collected struct {
	Blobs int   `json:"blobs"` // deleted
	Bytes int64 `json:"bytes"` // freed
	Kept  int   `json:"kept"`  // blobs that something names, or that are young or open
}

// Roots yields digests that somebody else needs: artifacts, partial results
// and pinned versions of jobs.
type Roots func(ctx context.Context) iter.Seq2[lode.Digest, error]

// Collect deletes the blobs of the store that no kept version of any dataset
// names, no root names, and that are older than grace (0: DefaultGrace). Every
// other user of the same home must be among the roots: what they do not name
// is deleted. If anything that names blobs cannot be read, nothing is deleted.
func (s *Datasets) Collect(ctx context.Context, grace time.Duration, roots ...Roots) (Collected, error) {
	var did Collected
	if grace <= 0 {
		grace = DefaultGrace
	}
	before := s.now().Add(-grace)
	needed, err := s.named(ctx)
	if err != nil {
		return did, err
	}
	for _, r := range roots {
		for d, err := range r(ctx) {
			if err != nil {
				return did, err
			}
			needed[d] = true
		}
	}
	for info, err := range s.store.List(ctx) {
		if err != nil {
			return did, err
		}
		if needed[info.Digest] || !info.Modified.Before(before) {
			did.Kept++
			continue
		}
		gone, err := s.store.Collect(ctx, info.Digest, before)
		if err != nil {
			return did, err
		}
		if gone {
			did.Blobs++
			did.Bytes += info.Size
		} else {
			did.Kept++
		}
	}
	return did, nil
}

// named is every blob that a kept version needs, of datasets that are there
// and of those that can be brought back.
func (s *Datasets) named(ctx context.Context) (map[lode.Digest]bool, error) {
	heads, err := s.expire(ctx)
	if err != nil {
		return nil, err
	}
	live, err := s.List(ctx, "")
	if err != nil {
		return nil, err
	}
	needed := map[lode.Digest]bool{}
	for _, h := range append(heads, live...) {
		for _, v := range h.Versions {
			if err := s.Names(ctx, v.Manifest, func(d lode.Digest) { needed[d] = true }); err != nil {
				return nil, err
			}
		}
	}
	return needed, nil
}

// Names calls see with a manifest's digest and those of its shards and
// indexes: what must stay for the version to be readable.
func (s *Datasets) Names(ctx context.Context, manifest lode.Digest, see func(lode.Digest)) error {
	m, err := s.manifest(ctx, manifest)
	if err != nil {
		return err
	}
	see(manifest)
	for _, sh := range m.Shards {
		see(sh.Digest)
		if !sh.Index.IsZero() {
			see(sh.Index)
		}
	}
	return nil
}
