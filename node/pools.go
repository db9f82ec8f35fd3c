package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"

	"lode"
	"lode/bus"
	"lode/engine"
	"lode/internal/telemetry"
	"lode/invoke"
	"lode/placement"
	"lode/store"
)

// pools gives invoke the engine's pool of a revision, and takes what invoke
// observes to telemetry: both want one look-up a call.
type pools struct {
	n    *Node
	code *bus.Table // key of compiled code -> digest of the blob that holds it
	kept sync.Map   // what code was seen to hold: string -> lode.Digest

	byPtr sync.Map // *lode.Revision -> *pooled; a cache over byID

	mu   sync.Mutex
	byID map[string]*pooled
}

// pooled is a revision in use.
type pooled struct {
	rev  *lode.Revision
	pool *engine.Pool
	seen *telemetry.Func
}

func openPools(ctx context.Context, n *Node) (*pools, error) {
	t, err := n.bus.Table(ctx, "code")
	if err != nil {
		return nil, err
	}
	return &pools{n: n, code: t, byID: map[string]*pooled{}}, nil
}

// Pool returns the pool of rev, made at its first call.
func (p *pools) Pool(rev *lode.Revision) (invoke.Runner, error) {
	e, err := p.get(rev)
	if err != nil {
		return nil, err
	}
	return e.pool, nil
}

func (p *pools) get(rev *lode.Revision) (*pooled, error) {
	if e, ok := p.byPtr.Load(rev); ok {
		return e.(*pooled), nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	id := rev.ID()
	e := p.byID[id]
	if e != nil && e.rev.Digest != rev.Digest { // the name was removed, and its numbers began anew
		go e.pool.Close()
		e = nil
	}
	if e == nil {
		eng := p.n.engine
		if isJob(rev) {
			eng = p.n.jobEngine
		}
		pool, err := eng.Pool(engineConfig(rev), p.source(rev.Function.Artifact))
		if err != nil {
			return nil, err
		}
		e = &pooled{rev: rev, pool: pool, seen: p.n.telemetry.Function(id, string(rev.Namespace), string(rev.Name))}
		p.byID[id] = e
	}
	p.byPtr.Store(rev, e)
	return e, nil
}

// Code is how near the code of rev is to running here, as far as is known
// without a look at the disk.
func (p *pools) Code(rev *lode.Revision) placement.Code {
	p.mu.Lock()
	e := p.byID[rev.ID()]
	p.mu.Unlock()
	if e == nil || e.rev.Digest != rev.Digest {
		return placement.Absent
	}
	switch s := e.pool.Stats(); {
	case s.Warm+s.Busy > 0:
		return placement.Warm
	case s.Loaded > 0:
		return placement.Loaded
	case s.Loads > 0:
		return placement.Compiled
	}
	return placement.Absent
}

func engineConfig(rev *lode.Revision) engine.Config {
	f := &rev.Function
	return engine.Config{Revision: rev.ID(), Namespace: rev.Namespace, Contract: f.Contract, Limits: f.Limits, Args: f.Args, Env: f.Env, Reuse: f.Reuse, OKExit: f.OKExit}
}

// changed forgets the pools of names that are gone, and keeps those warm that
// ask for it.
func (p *pools) changed(uint64) {
	p.byPtr.Clear()
	p.mu.Lock()
	var gone []*pooled
	for id, e := range p.byID {
		if isJob(e.rev) {
			continue
		}
		if _, ok := p.n.catalog.Lookup(e.rev.Namespace, e.rev.Name); !ok {
			gone = append(gone, e)
			delete(p.byID, id)
		}
	}
	p.mu.Unlock()
	for _, e := range gone {
		p.n.telemetry.Forget(string(e.rev.Namespace), string(e.rev.Name))
		if err := e.pool.Close(); err != nil {
			p.n.cfg.Logger.Warn("close the pool of a removed function", "revision", e.rev.ID(), "err", err)
		}
	}
	for rev := range p.n.catalog.Functions() {
		if rev.Function.Limits.ScaleMin > 0 {
			p.warm(rev)
		}
	}
}

// warm makes the sandboxes that a revision keeps, without holding anybody up.
func (p *pools) warm(rev *lode.Revision) {
	e, err := p.get(rev)
	if err != nil {
		p.n.cfg.Logger.Warn("keep a function warm", "revision", rev.ID(), "err", err)
		return
	}
	p.n.background.Go(func() {
		if err := e.pool.Warm(p.n.ctx, rev.Function.Limits.ScaleMin); err != nil && p.n.ctx.Err() == nil {
			p.n.cfg.Logger.Warn("keep a function warm", "revision", rev.ID(), "err", err)
		}
	})
}

// drop closes the pool of a revision that nobody runs any more.
func (p *pools) drop(rev *lode.Revision) {
	p.mu.Lock()
	e := p.byID[rev.ID()]
	delete(p.byID, rev.ID())
	p.mu.Unlock()
	p.byPtr.Delete(rev)
	if e != nil {
		p.n.telemetry.Forget(string(rev.Namespace), string(rev.Name))
		if err := e.pool.Close(); err != nil {
			p.n.cfg.Logger.Warn("close the pool of a job", "revision", rev.ID(), "err", err)
		}
	}
}

// count adds up the sandboxes of a function's revisions.
func (p *pools) count(ns lode.Namespace, name lode.Name) (warm, busy int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.byID {
		if e.rev.Namespace == ns && e.rev.Name == name {
			s := e.pool.Stats()
			warm += s.Warm
			busy += s.Busy
		}
	}
	return warm, busy
}

// source reads an artifact and its compiled code from the store.
func (p *pools) source(artifact lode.Digest) engine.Source {
	return source{store: p.n.artifacts, code: p.code, kept: &p.kept, artifact: artifact}
}

type source struct {
	store    *store.Store
	code     *bus.Table
	kept     *sync.Map
	artifact lode.Digest
}

// Module reads the artifact.
func (s source) Module(ctx context.Context) ([]byte, error) {
	return readBlob(ctx, s.store, s.artifact)
}

// Code reads compiled code. A blob that the table once named is as good as the
// one that it names now, as long as it is there.
func (s source) Code(ctx context.Context, key string) ([]byte, bool, error) {
	if d, ok := s.kept.Load(key); ok {
		if b, err := readBlob(ctx, s.store, d.(lode.Digest)); err == nil {
			return b, true, nil
		}
	}
	e, ok, err := s.code.Get(ctx, key)
	if err != nil || !ok {
		return nil, false, err
	}
	d, _, err := parseCode(e.Value)
	if err != nil {
		return nil, false, err
	}
	b, err := readBlob(ctx, s.store, d)
	if k := lode.KindOf(err); k == lode.NotFound || k == lode.Damaged { // it can be made again
		return nil, false, nil
	}
	if err == nil {
		s.kept.Store(key, d)
	}
	return b, err == nil, err
}

// parseCode reads an entry of the table of compiled code: the digest of the
// code, and that of the artifact for which it was compiled last.
func parseCode(value []byte) (code, artifact lode.Digest, err error) {
	c, a, _ := bytes.Cut(value, []byte{' '})
	err = errors.Join(code.UnmarshalText(c), artifact.UnmarshalText(a))
	return code, artifact, err
}

// Keep keeps compiled code.
func (s source) Keep(ctx context.Context, key string, code []byte) error {
	d, err := s.store.PutBytes(ctx, code)
	if err != nil {
		return err
	}
	if _, err = s.code.Put(ctx, key, []byte(d.String()+" "+s.artifact.String())); err == nil {
		s.kept.Store(key, d)
	}
	return err
}

var _ engine.Source = source{}

func readBlob(ctx context.Context, s *store.Store, d lode.Digest) ([]byte, error) {
	b, err := s.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	all := make([]byte, b.Size())
	if _, err := io.ReadFull(io.NewSectionReader(b, 0, b.Size()), all); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "read blob %s: %w", d.Short(), err)
	}
	return all, nil
}

// Done takes an attempt to telemetry.
func (p *pools) Done(r *invoke.Record) {
	if r.Revision == nil {
		return // the door counts what found no function
	}
	e, err := p.get(r.Revision)
	if err != nil {
		return
	}
	t := telemetry.Record{ID: string(r.ID), Trace: telemetry.TraceOf(r.Trace.ID, r.Trace.Span, r.Trace.Parent, r.Trace.Sampled), Trigger: string(r.Request.Trigger), Attempt: r.Request.Attempt,
		Arrived: r.Start, End: r.End, Usage: telemetry.Usage(r.Usage), Status: r.Status, Caller: r.Request.Caller, Method: r.Request.Method, Path: r.Request.Path}
	if r.Err != nil {
		t.Kind, t.Detail = string(r.Err.Kind), r.Err.Detail
		e.seen.Log(t.ID, slog.LevelError, failure(r.Err))
	}
	e.seen.Done(&t)
}

// failure is how an invocation's end reads in the log: a crash is looked for
// there first.
func failure(e *lode.Error) string {
	text := string(e.Kind) + ": " + e.Error()
	if g := e.Guest; g != nil && len(g.Stack) > 0 {
		text += "\n\t" + strings.Join(g.Stack, "\n\t")
	}
	return text
}

// Line takes a guest's line to the log.
func (p *pools) Line(l *invoke.Line) {
	e, err := p.get(l.Revision)
	if err != nil {
		return
	}
	e.seen.Log(string(l.ID), slog.Level(l.Level), string(l.Text))
}

var (
	_ invoke.Pools    = (*pools)(nil)
	_ invoke.Observer = (*pools)(nil)
	_ invoke.Codes    = (*pools)(nil)
)

// named puts a place before an error's detail and keeps its kind and hint.
func named(err error, format string, args ...any) error {
	e := *lode.AsError(err)
	where := lode.Errorf(e.Kind, format, args...)
	e.Detail = where.Detail + ": " + e.Detail
	return &e
}
