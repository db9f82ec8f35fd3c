package data

import (
	"context"
	"crypto/rand"
	"encoding/json"
	mrand "math/rand/v2"
	"time"

	"lode"
)

// change is a version to be committed on top of whatever is newest then.
type change struct {
	ns     lode.Namespace
	name   lode.Name
	spec   lode.Dataset
	add    bool // to the shards of the newest
	header []byte
	shards []lode.Shard
}

// commit makes the change visible by compare-and-swap. Who loses reads again
// and puts its shards on top of the winner's.
func (s *Datasets) commit(ctx context.Context, c change) (*lode.Manifest, error) {
	for {
		head, rev, err := s.find(ctx, c.ns, c.name)
		switch {
		case lode.KindOf(err) == lode.NotFound && !c.add:
			head = &Head{Namespace: c.ns, Name: c.name}
		case err != nil:
			return nil, err // also an append to what was removed meanwhile
		}
		m, err := s.next(ctx, head, c)
		if err != nil {
			return nil, err
		}
		won, err := s.swap(ctx, head, rev, c, m)
		if err != nil {
			return nil, err
		}
		if won {
			return m, nil
		}
		select { // let the others finish
		case <-time.After(time.Duration(mrand.IntN(10)+1) * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// next is the manifest that c makes of head's newest.
func (s *Datasets) next(ctx context.Context, head *Head, c change) (*lode.Manifest, error) {
	m := &lode.Manifest{Namespace: c.ns, Name: c.name, Version: 1, Created: s.now().UTC(), Records: c.spec.Records, Header: c.header, Shards: c.shards}
	if len(head.Versions) > 0 {
		m.Version, m.Parent = head.Newest().Number+1, head.Newest().Manifest
	}
	if c.add {
		old, err := s.manifest(ctx, m.Parent)
		if err != nil {
			return nil, err
		}
		if old.Records != m.Records {
			return nil, lode.Errorf(lode.Conflict, "dataset %s became one of records %s meanwhile", c.name, old.Records)
		}
		if old.Header != nil && m.Header != nil && string(old.Header) != string(m.Header) {
			return nil, lode.Errorf(lode.Conflict, "dataset %s got another header meanwhile", c.name)
		}
		if m.Header == nil {
			m.Header = old.Header
		}
		m.Shards = append(append([]lode.Shard{}, old.Shards...), c.shards...)
	}
	for _, sh := range m.Shards {
		m.Bytes += sh.Bytes
		m.Count += sh.Count
	}
	if m.Shards == nil {
		m.Shards = []lode.Shard{}
	}
	return m, nil
}

// swap writes the manifest and points the register at it.
func (s *Datasets) swap(ctx context.Context, head *Head, rev uint64, c change, m *lode.Manifest) (won bool, err error) {
	d, err := putJSON(ctx, s.store, m)
	if err != nil {
		return false, err
	}
	v := Version{Number: m.Version, Manifest: d, Created: m.Created, Shards: len(m.Shards), Bytes: m.Bytes, Count: m.Count, Commit: rand.Text()}
	next := Head{Namespace: c.ns, Name: c.name, Spec: c.spec, Versions: append(head.Versions, v)}
	if extra := len(next.Versions) - c.spec.Keep; extra > 0 {
		next.Versions = next.Versions[extra:]
	}
	value, err := json.Marshal(next)
	if err != nil {
		return false, lode.Errorf(lode.Internal, "write the head of %s: %w", c.name, err)
	}
	_, err = s.regs.Swap(ctx, key(c.ns, c.name), value, rev)
	switch lode.KindOf(err) {
	case "":
		return true, nil
	case lode.Precondition, lode.Conflict:
		return false, nil
	}
	if s.landed(ctx, c, v.Commit) {
		return true, nil
	}
	return false, err
}

// landed finds out whether a swap whose answer was lost took place.
func (s *Datasets) landed(ctx context.Context, c change, commit string) bool {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer stop()
	head, _, err := s.find(ctx, c.ns, c.name)
	if err != nil {
		return false
	}
	for _, v := range head.Versions {
		if v.Commit == commit {
			return true
		}
	}
	return false
}
