package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"lode"
)

// layoutTable is the table of the record of moves. It is written also while
// other writes are held back.
func (b *Bus) layoutTable(ctx context.Context) (*Table, error) {
	t, err := b.Table(ctx, layoutTable)
	if err == nil {
		t.free = true
	}
	return t, err
}

// moveRecord reads the record; a rev of 0: there is none.
func (t *Table) moveRecord(ctx context.Context) (rec moveRecord, rev uint64, err error) {
	e, ok, err := t.Get(ctx, moveKey)
	if err != nil || !ok {
		return rec, 0, err
	}
	if err := json.Unmarshal(e.Value, &rec); err != nil {
		return rec, 0, lode.Errorf(lode.Damaged, "the record of the move of the bus cannot be read: %w", err)
	}
	return rec, e.Rev, nil
}

func (t *Table) writeMove(ctx context.Context, rec moveRecord, rev uint64) (uint64, error) {
	v, err := json.Marshal(rec)
	if err != nil {
		return 0, lode.Errorf(lode.Internal, "write the record of the move of the bus: %w", err)
	}
	if rev == 0 {
		return t.Create(ctx, moveKey, v)
	}
	return t.Update(ctx, moveKey, v, rev)
}

// setMoving notes that a move is under way here, for those who ask.
func (b *Bus) setMoving(generation uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.moving = generation
}

// recover ends a move that its mover has left: what is committed is completed,
// all else is undone.
func (b *Bus) recover(ctx context.Context) error {
	t, err := b.layoutTable(ctx)
	if err != nil {
		return err
	}
	rec, rev, err := t.moveRecord(ctx)
	if err != nil || rev == 0 {
		return err
	}
	switch {
	case rec.Phase == phaseCommitted:
		return b.adopt(rec.To)
	case rec.Phase == phaseCopying && b.underWay(ctx, rec):
		return lode.Errorf(lode.Conflict, "node %s is moving the bus", rec.Mover)
	}
	return b.undo(ctx, rec, rev)
}

// underWay asks the mover whether it is still at it.
func (b *Bus) underWay(ctx context.Context, rec moveRecord) bool {
	if rec.Mover == b.cfg.Node {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.moving == rec.To.Generation
	}
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	a, err := b.ask(ctx, rec.Mover, question{Op: "layout"})
	return err == nil && a.Moving == rec.To.Generation
}

// undo makes the old generation whole again. First it is decided, then done;
// what a crash leaves undone, the next recover does.
func (b *Bus) undo(ctx context.Context, rec moveRecord, rev uint64) error {
	t, err := b.layoutTable(ctx)
	if err != nil {
		return err
	}
	if rec.Phase == phaseCopying {
		rec.Phase = phaseUndone
		if _, err := t.writeMove(ctx, rec, rev); err != nil {
			now, _, rerr := t.moveRecord(ctx)
			if rerr == nil && now.To.Generation == rec.To.Generation && now.Phase == phaseCommitted {
				return b.adopt(now.To) // the mover was faster
			}
			if rerr != nil || now.To.Generation != rec.To.Generation || now.Phase != phaseUndone {
				return err
			}
		}
	}
	s := side{b.nc, b.js}
	all, err := s.streams(ctx)
	if err != nil {
		return wrap(err, "undo the move of the bus")
	}
	fenced := false
	for _, i := range all {
		if isFenced(i) {
			fenced = true
			if err := s.fence(ctx, i, false); err != nil {
				return wrap(err, "undo the move of the bus")
			}
		}
	}
	q := question{Op: "thaw", Layout: rec.To}
	if fenced || b.gate.frozen() != nil || b.instance(rec.To.Generation) != nil {
		b.askAll(ctx, append(b.others(), b.cfg.Node), q, askWait)
	}
	return nil
}

// adopt follows a layout that is committed, if it is newer than the own one.
func (b *Bus) adopt(l Layout) error {
	b.switching.Lock()
	defer b.switching.Unlock()
	if err := b.open(); err != nil {
		return err
	}
	cur := b.Layout()
	if l.Generation <= cur.Generation {
		return nil
	}
	if l.Cluster != cur.Cluster {
		return lode.Errorf(lode.Conflict, "another node follows the bus of another cluster")
	}
	if err := l.check(); err != nil {
		return err
	}
	if err := writeLayout(b.cfg.Dir, l); err != nil {
		return err
	}
	next := b.instance(l.Generation)
	if next == nil && l.Has(b.cfg.Node) && formed(b.cfg.Dir, l) {
		var err error
		if next, err = b.launch(b.ctx, l); err != nil {
			b.cfg.Logger.Error("bus: the own copy of the new generation does not start", "err", err)
			next = nil
		}
	}
	b.mu.Lock()
	b.layout = l
	if next != nil {
		b.instances[l.Generation] = next
	}
	var old []*instance
	for g, i := range b.instances {
		if g != l.Generation {
			old = append(old, i)
			delete(b.instances, g)
		}
	}
	b.mu.Unlock()
	b.nc.ForceReconnect()
	b.thawWhenConnected()
	if b.cfg.Cluster.Changed != nil {
		b.cfg.Cluster.Changed(b.Layout())
	}
	b.work.Go(func() {
		for _, i := range old {
			i.stop()
		}
		b.leave(l.Generation)
	})
	return nil
}

// thawWhenConnected lets writes go on when the connection is the new one: else
// each would fail once and wait.
func (b *Bus) thawWhenConnected() {
	b.work.Go(func() {
		b.arrive(lastPause)
		b.gate.thaw()
	})
}

// arrive waits until there is a connection, for a while.
func (b *Bus) arrive(wait time.Duration) {
	for end := time.Now().Add(wait); !b.nc.IsConnected() && time.Now().Before(end); {
		select {
		case <-b.closed:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// leave removes old stores when everybody who answers has written to this
// generation.
func (b *Bus) leave(generation uint64) {
	for {
		if b.left(generation) {
			b.removeStores(generation)
			return
		}
		select {
		case <-b.closed:
			return
		case <-time.After(time.Second):
		}
	}
}

// left writes that this node has come, and looks who else has.
func (b *Bus) left(generation uint64) bool {
	if b.Layout().Generation != generation {
		return true // removed with a later one
	}
	t, err := b.layoutTable(b.ctx)
	if err != nil {
		return false
	}
	if _, err := t.Put(b.ctx, "seen/"+string(b.cfg.Node), fmt.Append(nil, generation)); err != nil {
		return false
	}
	for n, a := range b.askAll(b.ctx, b.others(), question{Op: "layout"}, askWait) {
		if a.Layout.Generation >= generation {
			continue
		}
		b.cfg.Logger.Info("bus: an old store is kept for a node that has not followed yet", "node", n)
		return false
	}
	return b.Layout().Generation == generation
}

// takePart answers what a mover asks of a node.
func (b *Bus) takePart(ctx context.Context, q question) error {
	b.reached("asked to " + q.Op)
	defer b.reached("done " + q.Op)
	switch q.Op {
	case "prepare":
		return b.prepare(ctx, q.Layout)
	case "freeze":
		b.gate.freeze(freezeFor)
		ctx, cancel := context.WithTimeout(ctx, settleWait)
		defer cancel()
		return b.gate.settle(ctx)
	case "hold":
		if b.Layout().Generation < q.Layout.Generation {
			b.gate.freeze(freezeFor)
		}
		return nil
	case "cut":
		if i := b.instance(q.Layout.Generation); i != nil {
			i.clients.only(q.Nodes)
			if i.routes != nil {
				i.routes.peers.only(q.Nodes)
			}
		}
		return nil
	case "firm":
		return b.firm(ctx, q.Layout)
	case "sync":
		return syncStore(storeDir(b.cfg.Dir, q.Layout.Generation))
	case "thaw":
		b.discard(q.Layout.Generation)
		return nil
	case "switch":
		return b.adopt(q.Layout)
	}
	return lode.Errorf(lode.Unavailable, "the bus of this node does not know what %q is", q.Op).WithHint("run the same version of Lode on all nodes")
}

// prepare starts an empty server for a generation that is being made.
func (b *Bus) prepare(ctx context.Context, l Layout) error {
	b.switching.Lock()
	defer b.switching.Unlock()
	if err := b.open(); err != nil {
		return err
	}
	cur := b.Layout()
	if l.Generation <= cur.Generation || l.Cluster != cur.Cluster || !l.Has(b.cfg.Node) {
		return lode.Errorf(lode.Conflict, "the bus of this node is at generation %d", cur.Generation)
	}
	if err := l.check(); err != nil {
		return err
	}
	if i := b.instance(l.Generation); i != nil {
		if i.layout.Secret == l.Secret {
			return nil
		}
		return lode.Errorf(lode.Conflict, "generation %d is being made by another node", l.Generation)
	}
	// What lies there is of an attempt that failed: a committed one would
	// have been adopted.
	if err := os.RemoveAll(storeDir(b.cfg.Dir, l.Generation)); err != nil {
		return lode.Errorf(lode.Unavailable, "prepare the move of the bus: %w", err)
	}
	if err := os.MkdirAll(storeDir(b.cfg.Dir, l.Generation), 0o700); err != nil {
		return lode.Errorf(lode.Unavailable, "prepare the move of the bus: %w", err)
	}
	if err := b.markFormed(l); err != nil {
		return err
	}
	o := b.options(l)
	if len(l.Members) == 1 {
		o.SyncAlways = false // until firm
	}
	return b.replace(ctx, l, nil, o)
}

// firm ends the time in which a server that is alone does not put each message
// on the disk: it takes a copy message by message, and would take a thousand
// times as long.
func (b *Bus) firm(ctx context.Context, l Layout) error {
	b.switching.Lock()
	defer b.switching.Unlock()
	i := b.instance(l.Generation)
	if i == nil || i.layout.Secret != l.Secret {
		return lode.Errorf(lode.Conflict, "generation %d is not being made here", l.Generation)
	}
	if o := b.options(l); i.options.SyncAlways != o.SyncAlways {
		return b.replace(ctx, l, i, o)
	}
	return nil
}

// replace starts the server of a generation instead of another one, or of
// none.
func (b *Bus) replace(ctx context.Context, l Layout, old *instance, o *server.Options) error {
	if old != nil {
		b.mu.Lock()
		delete(b.instances, l.Generation)
		b.mu.Unlock()
		old.stop()
		if err := syncStore(storeDir(b.cfg.Dir, l.Generation)); err != nil {
			return lode.Errorf(lode.Unavailable, "prepare the move of the bus: %w", err)
		}
	}
	i, err := b.launchWith(ctx, l, o)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.instances[l.Generation] = i
	b.mu.Unlock()
	return nil
}

// discard forgets a generation that will not be, and lets writes go on.
func (b *Bus) discard(generation uint64) {
	b.switching.Lock()
	defer b.switching.Unlock()
	cur := b.Layout()
	if generation > cur.Generation {
		b.mu.Lock()
		i := b.instances[generation]
		delete(b.instances, generation)
		b.mu.Unlock()
		if i != nil {
			i.stop()
		}
		os.RemoveAll(storeDir(b.cfg.Dir, generation))
		os.Remove(formedFile(b.cfg.Dir, generation))
	}
	if i := b.instance(cur.Generation); i != nil {
		i.clients.only(nil)
		if i.routes != nil {
			i.routes.peers.only(nil)
		}
	}
	b.gate.thaw()
}

// others are the nodes of the cluster without this one.
func (b *Bus) others() []lode.NodeID {
	if b.cfg.Cluster == nil {
		return nil
	}
	out := slices.Clone(b.cfg.Cluster.Known())
	for _, m := range b.Layout().Members {
		if !slices.Contains(out, m.Node) {
			out = append(out, m.Node)
		}
	}
	return slices.DeleteFunc(out, func(n lode.NodeID) bool { return n == b.cfg.Node })
}
