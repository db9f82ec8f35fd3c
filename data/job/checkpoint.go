package job

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"lode"
)

// partialMax is the longest partial result that is read from a checkpoint.
const partialMax = 1 << 30

// save writes the partials that are there as a checkpoint, and the register
// that names it. It is an economy, not a promise: what fails is logged, and
// costs a resumed job some work.
func (r *run) save() {
	if err := r.trySave(); err != nil {
		r.jobs.cfg.Log.Warn("a job's checkpoint could not be written", "job", r.id, "err", err)
	}
}

func (r *run) trySave() error {
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	r.mu.Lock()
	pending, done := maps.Clone(r.partials), maps.Clone(r.saved)
	manifest := r.job.Manifest
	r.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	for i, p := range pending {
		d, err := r.jobs.cfg.Store.PutBytes(ctx, p.Body)
		if err != nil {
			return err
		}
		done[i] = saved{i, d, p.ContentType}
	}
	cp := checkpoint{Manifest: manifest}
	for _, i := range slices.Sorted(maps.Keys(done)) {
		cp.Partials = append(cp.Partials, done[i])
	}
	b, err := json.Marshal(cp)
	if err != nil {
		return err
	}
	d, err := r.jobs.cfg.Store.PutBytes(ctx, b)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.saved = done
	for i := range pending {
		delete(r.partials, i)
	}
	r.job.Checkpoint = d
	r.mu.Unlock()
	return r.write(ctx)
}

// resume reads the job's checkpoint. What cannot be read is worked on again.
func (r *run) resume(ctx context.Context, job Job, shards int) map[int]*Partial {
	out := map[int]*Partial{}
	cp, err := r.jobs.readCheckpoint(ctx, job.Checkpoint)
	if err != nil {
		r.jobs.cfg.Log.Warn("a job's checkpoint cannot be read", "job", job.ID, "err", err)
	}
	if err != nil || cp.Manifest != job.Manifest {
		return out
	}
	for _, s := range cp.Partials {
		if s.Shard < 0 || s.Shard >= shards {
			continue
		}
		body, err := r.jobs.cfg.Store.ReadAll(ctx, s.Blob, partialMax)
		if err != nil {
			r.jobs.cfg.Log.Warn("a partial result cannot be read", "job", job.ID, "shard", s.Shard, "err", err)
			continue
		}
		p := Partial{body, s.ContentType}
		out[s.Shard] = &p
		r.mu.Lock()
		r.saved[s.Shard] = s
		r.mu.Unlock()
	}
	return out
}

func (s *Jobs) readCheckpoint(ctx context.Context, d lode.Digest) (checkpoint, error) {
	var cp checkpoint
	if d.IsZero() {
		return cp, nil
	}
	b, err := s.cfg.Store.ReadAll(ctx, d, partialMax)
	if err != nil {
		return cp, err
	}
	if err := json.Unmarshal(b, &cp); err != nil {
		return cp, lode.Errorf(lode.Damaged, "checkpoint %s: %w", d, err)
	}
	return cp, nil
}
