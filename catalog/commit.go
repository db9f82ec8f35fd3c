package catalog

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"lode"
	"lode/bus"
)

const commitWait = 10 * time.Second // a commit under way is not cut off by its caller

// load reads everything and begins to follow.
func (c *Catalog) load(ctx, follow context.Context) error {
	w, err := c.apps.Watch(follow, "")
	if err != nil {
		return err
	}
	newest, err := c.readAll(ctx, w)
	if err == nil {
		err = c.loadSecrets(ctx, follow)
	}
	if err != nil {
		w.Close()
		return err
	}
	revs := c.readRevisions(ctx, newest)
	snap := c.snap.Load().with(slices.Collect(maps.Values(newest)), func(ns lode.Namespace, app, name lode.Name, rr revRecord) *lode.Revision {
		return revs[revisionKey(ns, name, rr.Digest)].as(app, rr)
	})
	snap.routes = routesOf(snap.spaces)
	c.snap.Store(snap)
	if err := c.rollForward(ctx); err != nil && lode.KindOf(err) != lode.Full {
		w.Close() // on a full disk what is there can still be called
		return err
	}
	c.followers.Go(func() {
		defer w.Close()
		c.follow(follow, w)
	})
	return nil
}

// readAll reads the table up to now: the newest record of each app.
func (c *Catalog) readAll(ctx context.Context, w *bus.Watch) (map[string]*appRecord, error) {
	newest := make(map[string]*appRecord)
	for {
		ch, err := w.Next(ctx)
		if err != nil {
			return nil, err
		}
		if ch.Op == bus.Synced {
			return newest, nil
		}
		if ch.Op != bus.Set {
			continue
		}
		r, err := decodeApp(ch.Value)
		if err != nil {
			return nil, lode.Errorf(lode.KindOf(err), "record %s: %w", ch.Key, err)
		}
		if ch.Key == headKey {
			c.head, c.headRev, c.ahead = r, ch.Rev, true
		}
		if key := appKey(r.Namespace, r.App); newest[key] == nil || newest[key].Gen < r.Gen {
			newest[key] = r
		}
	}
}

// stored is a revision's content as it was read.
type stored struct{ f lode.Function }

func (s *stored) as(app lode.Name, rr revRecord) *lode.Revision {
	if s == nil {
		return nil
	}
	return &lode.Revision{App: app, Number: rr.Number, Digest: rr.Digest, Created: rr.Created, Function: s.f}
}

// readRevisions reads what the aliases of all functions name. One that cannot
// be read is missing in the result: its function is known and says so when it
// is called.
func (c *Catalog) readRevisions(ctx context.Context, newest map[string]*appRecord) map[string]*stored {
	type read struct {
		key string
		s   *stored
	}
	reads := make(map[string]*read)
	var g errgroup.Group
	g.SetLimit(8)
	for _, r := range newest {
		for name, n := range r.Names {
			if !n.live() {
				continue
			}
			for rr := range n.named() {
				key := revisionKey(r.Namespace, name, rr.Digest)
				if reads[key] != nil {
					continue
				}
				got := &read{key: key}
				reads[key] = got
				g.Go(func() error {
					f, err := c.readFunction(ctx, key, rr.Digest)
					if err != nil {
						c.cfg.Logger.Error("catalog: a revision cannot be read", "function", string(r.Namespace)+"/"+string(name), "rev", rr.Number, "err", err)
						return nil
					}
					got.s = &stored{*f}
					return nil
				})
			}
		}
	}
	g.Wait()
	out := make(map[string]*stored, len(reads))
	for key, r := range reads {
		out[key] = r.s
	}
	return out
}

func (c *Catalog) readFunction(ctx context.Context, key string, want lode.Digest) (*lode.Function, error) {
	e, ok, err := c.revisions.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, lode.Errorf(lode.Damaged, "revision %s is missing", key)
	}
	var f lode.Function
	if err := json.Unmarshal(e.Value, &f); err != nil {
		return nil, lode.Errorf(lode.Damaged, "revision %s cannot be read: %w", key, err)
	}
	if d := digestOf(e.Value); d != want {
		return nil, lode.Errorf(lode.Damaged, "revision %s has the digest %s", key, d.Short()).WithHint("deploy it again")
	}
	return &f, nil
}

func (c *Catalog) readRevision(ctx context.Context, ns lode.Namespace, app, name lode.Name, rr revRecord) (*lode.Revision, error) {
	f, err := c.readFunction(ctx, revisionKey(ns, name, rr.Digest), rr.Digest)
	if err != nil {
		return nil, err
	}
	return &lode.Revision{Namespace: ns, App: app, Name: name, Number: rr.Number, Digest: rr.Digest, Created: rr.Created, Function: *f}, nil
}

// finder returns a revision's content, or nil. Its own namespace and name are
// filled in by who calls it.
type finder func(ns lode.Namespace, app, name lode.Name, rr revRecord) *lode.Revision

// with is s with other states of some apps. The routes are not yet those of
// the new state.
func (s *snapshot) with(recs []*appRecord, find finder) *snapshot {
	next := &snapshot{gen: s.gen, spaces: maps.Clone(s.spaces)}
	byNS := make(map[lode.Namespace][]*appRecord)
	for _, r := range recs {
		byNS[r.Namespace] = append(byNS[r.Namespace], r)
		next.gen = max(next.gen, r.Gen)
	}
	for ns, recs := range byNS {
		next.spaces[ns] = s.spaces[ns].with(recs, find)
	}
	return next
}

func (s *space) with(recs []*appRecord, find finder) *space {
	if s == nil {
		s = &space{}
	}
	next := &space{apps: make(map[lode.Name]*appRecord), names: make(map[lode.Name]*Entry), gone: make(map[lode.Name]lode.Name)}
	maps.Copy(next.apps, s.apps)
	changed := make(map[lode.Name]bool)
	for _, r := range recs {
		next.apps[r.App] = r
		changed[r.App] = true
	}
	for name, e := range s.names {
		if !changed[e.App] {
			next.names[name] = e
		}
	}
	for _, r := range recs {
		for name, n := range r.Names {
			if n.live() {
				next.names[name] = newEntry(r, name, n, s.names[name], find)
			}
		}
	}
	for app, rec := range next.apps {
		for name, n := range rec.Names {
			if !n.live() && next.names[name] == nil {
				next.gone[name] = app
			}
		}
	}
	return next
}

func newEntry(r *appRecord, name lode.Name, n *nameRecord, old *Entry, find finder) *Entry {
	e := &Entry{Namespace: r.Namespace, App: r.App, Name: name, Kind: n.Kind, Created: n.Created, Generation: r.Gen,
		Aliases: n.Aliases, Queue: n.Queue, Dataset: n.Dataset, record: n, revs: make(map[int]*lode.Revision)}
	for rr := range n.named() {
		if old != nil && old.App == r.App && old.revs[rr.Number] != nil && old.revs[rr.Number].Digest == rr.Digest {
			e.revs[rr.Number] = old.revs[rr.Number]
		} else if rev := find(r.Namespace, r.App, name, rr); rev != nil {
			rev.Namespace, rev.Name = r.Namespace, name
			e.revs[rr.Number] = rev
		}
	}
	if live, ok := n.alias(lode.LiveAlias); ok {
		e.Live = e.revs[mainRev(live)]
	}
	return e
}

// follow takes over what other nodes change.
func (c *Catalog) follow(ctx context.Context, w *bus.Watch) {
	for {
		ch, err := w.Next(ctx)
		if err != nil {
			return // closed
		}
		if ch.Op != bus.Set {
			continue
		}
		r, err := decodeApp(ch.Value)
		if err != nil {
			c.cfg.Logger.Error("catalog: a change cannot be read", "key", ch.Key, "err", err)
			continue
		}
		c.write.Lock()
		c.takeOver(ctx, r)
		if ch.Key == headKey && ch.Rev > c.headRev {
			c.head, c.headRev, c.ahead = r, ch.Rev, true
		}
		c.write.Unlock()
	}
}

// takeOver makes r visible if it is news. Under write.
func (c *Catalog) takeOver(ctx context.Context, r *appRecord) {
	snap := c.snap.Load()
	if sp := snap.spaces[r.Namespace]; sp != nil && sp.apps[r.App] != nil && sp.apps[r.App].Gen >= r.Gen {
		return
	}
	c.publish(snap.with([]*appRecord{r}, func(ns lode.Namespace, app, name lode.Name, rr revRecord) *lode.Revision {
		rev, err := c.readRevision(ctx, ns, app, name, rr)
		if err != nil {
			c.cfg.Logger.Error("catalog: a revision cannot be read", "function", string(ns)+"/"+string(name), "rev", rr.Number, "err", err)
		}
		return rev
	}))
}

func (c *Catalog) publish(snap *snapshot) {
	snap.routes = routesOf(snap.spaces)
	c.snap.Store(snap)
	c.watchers.tell(snap.gen)
}

// rollForward copies head to its app's own record. Under write.
func (c *Catalog) rollForward(ctx context.Context) error {
	for c.ahead {
		key := appKey(c.head.Namespace, c.head.App)
		e, ok, err := c.apps.Get(ctx, key)
		if err != nil {
			return err
		}
		if ok {
			if r, err := decodeApp(e.Value); err == nil && r.Gen >= c.head.Gen {
				break
			}
		}
		b, err := c.head.encode()
		if err != nil {
			return err
		}
		_, err = c.apps.Update(ctx, key, b, e.Rev)
		if k := lode.KindOf(err); err != nil && k != lode.Precondition {
			return err
		} else if err == nil {
			break
		}
	}
	c.ahead = false
	return nil
}

// refresh reads head again. Under write.
func (c *Catalog) refresh(ctx context.Context) error {
	e, ok, err := c.apps.Get(ctx, headKey)
	if err != nil || !ok || e.Rev == c.headRev {
		return err
	}
	r, err := decodeApp(e.Value)
	if err != nil {
		return err
	}
	c.takeOver(ctx, r)
	c.head, c.headRev, c.ahead = r, e.Rev, true
	return nil
}

// change is one change of one app while it is being made.
type change struct {
	snap  *snapshot  // what it starts from
	space *space     // of its namespace; may be empty, not nil
	rec   *appRecord // the new state, a copy to be edited
	fresh map[string]fresh
	now   time.Time
}

// fresh is a revision's content that comes into service.
type fresh struct {
	f     lode.Function
	bytes []byte // to be stored; nil: it is
}

// change makes the next state of an app by edit, which is called again when
// somebody else was first. If edit returns false, or dry is set, nothing is
// stored.
func (c *Catalog) change(ctx context.Context, ns lode.Namespace, app lode.Name, by string, dry bool, edit func(*change) (bool, error)) error {
	c.write.Lock()
	defer c.write.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return lode.Errorf(lode.Cancelled, "change app %s: %w", app, err)
		}
		t := c.begin(ns, app)
		changed, err := edit(t)
		if err != nil || !changed {
			return err
		}
		t.rec.Gen, t.rec.Txn, t.rec.Changed, t.rec.By = t.snap.gen+1, rand.Text(), t.now, by
		b, err := t.rec.encode() // which may drop history: before anybody sees it
		if err != nil {
			return err
		}
		next := t.snap.with([]*appRecord{t.rec}, t.find)
		next.routes = routesOf(next.spaces)
		if !slices.Equal(next.routes, t.snap.routes) {
			if err := checkRoutes(next.routes); err != nil {
				return err
			}
		}
		if dry {
			return nil
		}
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitWait)
		err = c.commit(cctx, t, b)
		cancel()
		if lode.KindOf(err) == lode.Precondition {
			continue
		}
		if err == nil {
			c.snap.Store(next)
			c.watchers.tell(next.gen)
		}
		return err
	}
}

func (c *Catalog) begin(ns lode.Namespace, app lode.Name) *change {
	t := &change{snap: c.snap.Load(), now: c.cfg.Now().UTC().Round(0), fresh: make(map[string]fresh)}
	if t.space = t.snap.spaces[ns]; t.space == nil {
		t.space = &space{}
	}
	if r := t.space.apps[app]; r != nil {
		t.rec = r.clone()
	} else {
		t.rec = &appRecord{Namespace: ns, App: app, Names: make(map[lode.Name]*nameRecord)}
	}
	for name, n := range t.rec.Names {
		if !n.live() && t.now.After(n.Removed.Add(keepFor)) {
			delete(t.rec.Names, name)
		}
	}
	return t
}

func (t *change) find(ns lode.Namespace, app, name lode.Name, rr revRecord) *lode.Revision {
	if f, ok := t.fresh[revisionKey(ns, name, rr.Digest)]; ok {
		return (&stored{f.f}).as(app, rr)
	}
	return nil
}

// commit stores the change. Precondition: somebody else was first, and what he
// did is now known here; the change has to be made again. Under write.
func (c *Catalog) commit(ctx context.Context, t *change, b []byte) error {
	if err := c.rollForward(ctx); err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(8)
	for key, f := range t.fresh {
		if f.bytes == nil {
			continue
		}
		g.Go(func() error {
			_, err := c.revisions.Put(ctx, key, f.bytes)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	rev, err := c.apps.Update(ctx, headKey, b, c.headRev)
	if err != nil {
		if rerr := c.refresh(ctx); rerr != nil {
			return errors.Join(err, rerr)
		}
		if c.head == nil || c.head.Txn != t.rec.Txn {
			return err
		}
		rev = c.headRev // the answer was lost, the change was not
	}
	c.head, c.headRev, c.ahead = t.rec, rev, true
	if err := c.rollForward(ctx); err != nil {
		// The change is made; its copy is made before the next one.
		c.cfg.Logger.Warn("catalog: the copy of a change is late", "app", t.rec.App, "err", err)
	}
	c.dropUnnamed(ctx, t)
	return nil
}

// dropUnnamed deletes the content of revisions that the change dropped from
// the history.
func (c *Catalog) dropUnnamed(ctx context.Context, t *change) {
	before := t.space.apps[t.rec.App]
	if before == nil {
		return
	}
	for name, n := range before.Names {
		kept := make(map[lode.Digest]bool)
		for _, app := range c.snap.Load().spaces[t.rec.Namespace].apps {
			if rec := app.Names[name]; rec != nil && app.App != t.rec.App {
				for _, rr := range rec.Revs {
					kept[rr.Digest] = true
				}
			}
		}
		if rec := t.rec.Names[name]; rec != nil {
			for _, rr := range rec.Revs {
				kept[rr.Digest] = true
			}
		}
		for _, rr := range n.Revs {
			if kept[rr.Digest] {
				continue
			}
			if err := c.revisions.Delete(ctx, revisionKey(t.rec.Namespace, name, rr.Digest), 0); err != nil {
				c.cfg.Logger.Warn("catalog: an old revision was not deleted", "name", name, "rev", rr.Number, "err", err)
			}
		}
	}
}

// Digests yields the artifacts of every revision that is kept, and perhaps of
// some more: what is not among them and older than a deploy may be deleted.
func (c *Catalog) Digests(ctx context.Context) (map[lode.Digest]bool, error) {
	all, err := c.revisions.List(ctx, "")
	if err != nil {
		return nil, err
	}
	out := make(map[lode.Digest]bool, len(all))
	for _, e := range all {
		var f struct {
			Artifact lode.Digest `json:"artifact"`
		}
		if err := json.Unmarshal(e.Value, &f); err != nil {
			return nil, lode.Errorf(lode.Damaged, "revision %s cannot be read: %w", strings.TrimSpace(e.Key), err)
		}
		out[f.Artifact] = true
	}
	return out, nil
}
