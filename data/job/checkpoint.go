package job

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"lode"
)

// partialMax is the longest partial result that is read from a checkpoint, or
// taken from another node.
const partialMax = 1 << 30

// packed is the result of a group, packed.
type packed struct {
	body     []byte
	kind     string
	node     lode.NodeID
	progress Progress
}

// saved is the result of a group in a checkpoint.
type saved struct {
	Level       int         `json:"level"`
	Index       int         `json:"index"`
	Blob        lode.Digest `json:"blob"`
	ContentType string      `json:"content_type,omitempty"`
	Node        lode.NodeID `json:"node"`   // who worked on it
	Shards      int         `json:"shards"` // how many
	Bytes       int64       `json:"bytes"`  // of them
	Read        int64       `json:"read"`   // of those, in shards that were there before
}

func (s saved) place() place { return place{s.Level, s.Index} }

// checkpoint is what a resumed job begins with.
type checkpoint struct {
	Manifest lode.Digest `json:"manifest"`
	Groups   []saved     `json:"groups"` // in the order of shards
}

// remember has the result of a group written with the next checkpoint.
func (r *run) remember(at place, p packed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, kept := r.saved[at]; !kept {
		r.pending[at] = p
	}
}

// save writes the results that are there as a checkpoint, and the register
// that names it. It is an economy, not a promise: what fails is logged, and
// costs a resumed job some work. But errTaken is the end.
func (r *run) save() error {
	err := r.trySave()
	if err != nil {
		r.jobs.cfg.Log.Warn("a job's checkpoint could not be written", "job", r.id, "err", err)
	}
	return err
}

func (r *run) trySave() error {
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	r.mu.Lock()
	pending, done := maps.Clone(r.pending), maps.Clone(r.saved)
	job := r.settled() // counts what pending holds, and maybe results that are being packed
	r.mu.Unlock()
	if len(pending) == 0 {
		return r.owned(ctx)
	}
	for at, p := range pending {
		d, err := r.jobs.cfg.Store.PutBytes(ctx, p.body)
		if err != nil {
			return err
		}
		done[at] = saved{at.level, at.i, d, p.kind, p.node, p.progress.Shards, p.progress.Bytes, p.progress.Read}
	}
	cp := checkpoint{Manifest: job.Manifest, Groups: slices.SortedFunc(maps.Values(done), func(a, b saved) int {
		return cmp.Compare(a.Index<<a.Level, b.Index<<b.Level)
	})}
	b, err := json.Marshal(cp)
	if err != nil {
		return lode.Errorf(lode.Internal, "write a checkpoint: %w", err)
	}
	if job.Checkpoint, err = r.jobs.cfg.Store.PutBytes(ctx, b); err != nil {
		return err
	}
	r.mu.Lock()
	r.saved = done
	for at := range pending {
		delete(r.pending, at)
	}
	r.job.Checkpoint = job.Checkpoint
	r.mu.Unlock()
	return r.write(ctx, job)
}

// resume reads the job's checkpoint and counts what is in it. What cannot be
// read is worked on again, and was in vain.
func (r *run) resume(ctx context.Context, job Job, shards int) map[place]packed {
	out := r.readGroups(ctx, job, shards)
	r.update(func(j *Job) {
		j.Done, j.Read = 0, 0
		before := map[lode.NodeID]int64{}
		for node, s := range r.shares {
			before[node] = s.Bytes
			s.Shards, s.Bytes, s.Read = 0, 0, 0
		}
		for at := range out {
			g := r.saved[at]
			s := r.share(g.Node)
			j.Done += g.Shards
			j.Read += g.Read
			s.Shards += g.Shards
			s.Bytes += g.Bytes
			s.Read += g.Read
		}
		for node, s := range r.shares {
			vain := max(0, before[node]-s.Bytes)
			j.Wasted += vain
			s.Wasted += vain
		}
	})
	return out
}

func (r *run) readGroups(ctx context.Context, job Job, shards int) map[place]packed {
	out := map[place]packed{}
	ctx, stop := context.WithTimeout(ctx, r.jobs.cfg.Patience) // for all of it
	defer stop()
	var cp checkpoint
	err := r.patient(ctx, func() (err error) {
		cp, err = r.jobs.readCheckpoint(ctx, job.Checkpoint)
		return err
	})
	if err != nil {
		r.jobs.cfg.Log.Warn("a job's checkpoint cannot be read", "job", job.ID, "err", err)
	}
	if err != nil || cp.Manifest != job.Manifest {
		return out
	}
	var all []place
	for _, s := range cp.Groups {
		all = append(all, s.place())
	}
	wanted := disjoint(shards, all)
	for _, s := range cp.Groups {
		at := s.place()
		if _, twice := out[at]; twice || !wanted[at] {
			continue
		}
		var body []byte
		err := r.patient(ctx, func() (err error) {
			body, err = r.jobs.cfg.Store.ReadAll(ctx, s.Blob, partialMax)
			return err
		})
		if err != nil {
			r.jobs.cfg.Log.Warn("a partial result cannot be read", "job", job.ID, "shard", s.Index<<s.Level, "err", err)
			continue
		}
		out[at] = packed{body: body, kind: s.ContentType, node: s.Node}
		r.mu.Lock()
		r.saved[at] = s
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
