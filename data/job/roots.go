package job

import (
	"context"
	"iter"
	"time"

	"lode"
)

// Prune forgets the jobs that ended before the given time and returns how
// many; their results are then free to be collected.
func (s *Jobs) Prune(ctx context.Context, before time.Time) (int, error) {
	all, err := s.List(ctx, "")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, j := range all {
		if !j.Over() || !j.Ended.Before(before) {
			continue
		}
		if err := s.cfg.Registers.Delete(ctx, key(j.Namespace, j.ID)); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// Roots yields the blobs that jobs need: results of those that ended; code,
// pinned version and checkpoint of those that have not. It is a data.Roots.
func (s *Jobs) Roots(ctx context.Context) iter.Seq2[lode.Digest, error] {
	return func(yield func(lode.Digest, error) bool) {
		all, err := s.List(ctx, "")
		if err != nil {
			yield(lode.Digest{}, err)
			return
		}
		for _, j := range all {
			needed, err := s.needs(ctx, &j)
			if err != nil {
				yield(lode.Digest{}, err)
				return
			}
			for _, d := range needed {
				if !yield(d, nil) {
					return
				}
			}
		}
	}
}

func (s *Jobs) needs(ctx context.Context, j *Job) (out []lode.Digest, err error) {
	if j.Over() {
		if j.Result != nil && j.Result.Size > inlineMax {
			out = append(out, j.Result.Digest)
		}
		return out, nil
	}
	if j.What.Function != nil {
		out = append(out, j.What.Function.Artifact)
	}
	if err := s.cfg.Datasets.Names(ctx, j.Manifest, func(d lode.Digest) { out = append(out, d) }); err != nil {
		return nil, err
	}
	if j.Checkpoint.IsZero() {
		return out, nil
	}
	out = append(out, j.Checkpoint)
	cp, err := s.readCheckpoint(ctx, j.Checkpoint)
	if err != nil {
		s.cfg.Log.Warn("a job's checkpoint cannot be read", "job", j.ID, "err", err)
		return out, nil // nothing of it can be used
	}
	for _, p := range cp.Groups {
		out = append(out, p.Blob)
	}
	return out, nil
}
