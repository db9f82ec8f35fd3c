package data

import (
	"context"
	"encoding/json"
	"iter"
	"time"

	"lode"
)

// Remove removes a dataset. Its bytes go at the next Collect behind the grace
// period, unless another version names them; until then Restore brings it
// back. It returns what was removed.
func (s *Datasets) Remove(ctx context.Context, ns lode.Namespace, name lode.Name) (*Head, error) {
	h, _, err := s.load(ctx, ns, name)
	if err != nil {
		return nil, err
	}
	return h, s.regs.Delete(ctx, key(ns, name))
}

// Restore brings back what Remove returned, if the name is still free and the
// manifests are still there.
func (s *Datasets) Restore(ctx context.Context, h *Head) error {
	for _, v := range h.Versions {
		m, err := s.manifest(ctx, v.Manifest)
		if err != nil {
			return lode.Errorf(lode.Gone, "version %d of dataset %s cannot be brought back: %w", v.Number, h.Name, err)
		}
		for i, sh := range m.Shards {
			if ok, err := s.store.Has(ctx, sh.Digest); err != nil {
				return err
			} else if !ok {
				return lode.Errorf(lode.Gone, "shard %d of dataset %s is collected already", i, h.Name)
			}
		}
	}
	value, err := json.Marshal(h)
	if err != nil {
		return lode.Errorf(lode.Internal, "write the head of %s: %w", h.Name, err)
	}
	_, err = s.regs.Swap(ctx, key(h.Namespace, h.Name), value, 0)
	if k := lode.KindOf(err); k == lode.Precondition || k == lode.Conflict {
		return lode.Errorf(lode.Conflict, "there is a dataset %s again", h.Name)
	}
	return err
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

// named is every blob that a kept version needs.
func (s *Datasets) named(ctx context.Context) (map[lode.Digest]bool, error) {
	needed := map[lode.Digest]bool{}
	for h, err := range s.Walk(ctx) {
		if err != nil {
			return nil, err
		}
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
