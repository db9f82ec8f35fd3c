package bus

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

// A move brings everything from one generation of the bus to the next, which
// has other members. It has one record in each generation, table "layout", key
// "move", JSON:
//
//	{"to": Layout, "mover": "node-a", "phase": "copying"}
//
//	(none) -> copying -(compare-and-swap)-> committed   the next generation is the truth
//	              |----(compare-and-swap)-> undone      this one still is
//
// The order, each step done before the next begins:
//
//  1. The record says copying. (It is in the old generation, so there is one
//     move at a time, and who finds it can end it.)
//  2. The new members start servers of the new generation, in folders of their
//     own, beside those of the old one.
//  3. While writes go on, each stream is copied with its positions, compared to
//     the byte, and followed (follow.go).
//  4. Every node that answers holds its writes back and waits for those under
//     way. The old members cut off every other node.
//  5. Each stream of the old generation gives up its subjects: whoever has not
//     heard of the move gets no answer to a write.
//  6. What was written since 3 is copied and compared too, and all is put on
//     the disks of the new members. The old streams must not have changed.
//  7. The record says committed. This one swap decides.
//  8. Every node switches over; writes go on. Old stores are removed when all
//     that answer have written to the new generation.
//
// A crash before 7 is undone by whoever finds the record without its mover
// (tend); after it, the node that finds it switches, and tells others. Writes
// wait from 4 to 8, for no longer than frozenMost and what it takes to undo;
// where that is not enough, all is undone and tried again.
type moveRecord struct {
	To    Layout      `json:"to"`
	Mover lode.NodeID `json:"mover"`
	Phase string      `json:"phase"`
}

const (
	phaseCopying   = "copying"
	phaseCommitted = "committed"
	phaseUndone    = "undone"

	moveKey = "move"

	prepareWait = 40 * time.Second
	freezeFor   = 2 * time.Second // unless it is repeated
	holdEvery   = 500 * time.Millisecond
	settleWait  = 2500 * time.Millisecond
	frozenMost  = 6 * time.Second // from the freeze to the commit
	undoWait    = 2 * callWait
	attempts    = 3 // of what comes after the new members have found together
)

// mover is one Move under way.
type mover struct {
	b       *Bus
	from    Layout
	to      Layout
	old     side
	next    side
	table   *Table
	rev     uint64
	heard   []lode.NodeID
	mark    time.Time
	streams streamSet // of the old generation, as they were last looked at
	copies  copies
	// restoring is held while a stream is restored; see restore.
	restoring sync.Mutex
	late      bool // it failed though all members took part: another attempt may help
}

// streamSet is the streams of one generation, by name.
type streamSet map[string]*jetstream.StreamInfo

// Move makes other nodes the members of the bus: 1, 3 or 5 of them, also the
// same ones (which renews the copy of one that has lost its own). Writes wait
// meanwhile. One node at a time calls it: the keeper. Its error says that
// nothing has changed, but for Unavailable with "not known": then the layout
// tells in a while.
func (b *Bus) Move(ctx context.Context, members []Member) error {
	if b.cfg.Cluster == nil {
		return lode.Errorf(lode.Invalid, "this bus has no members to choose")
	}
	if !b.busy.TryLock() {
		return lode.Errorf(lode.Conflict, "the bus is moving already")
	}
	defer b.busy.Unlock()
	for n := 1; ; n++ {
		again, err := b.move(ctx, members)
		if err == nil || !again || n == attempts || ctx.Err() != nil || b.open() != nil {
			return err
		}
		b.cfg.Logger.Warn("bus: a change of its members did not come to its end and was undone; it is tried again", "err", err)
	}
}

// move is one attempt; again says that another one may succeed.
func (b *Bus) move(ctx context.Context, members []Member) (again bool, err error) {
	defer b.setMoving(0)
	m := &mover{b: b, from: b.Layout(), old: side{b.nc, b.js}}
	m.to = Layout{Cluster: m.from.Cluster, Members: slices.Clone(members), Secret: newID()}
	if err := m.to.check(); err != nil {
		return false, err
	}
	if err := m.begin(ctx); err != nil {
		return false, err
	}
	b.reached("begun")
	began := time.Now()
	if err = m.run(ctx); err != nil {
		if lode.KindOf(err) == lode.Unavailable && strings.Contains(err.Error(), "not known") {
			return false, err
		}
		// What could not be undone now is undone by whoever finds the record.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
		defer cancel()
		if uerr := b.undo(ctx, moveRecord{m.to, b.cfg.Node, phaseCopying}, m.rev); uerr != nil {
			b.cfg.Logger.Warn("bus: a move that failed is not undone yet", "err", uerr)
			b.doubt()
		}
		return m.late, wrap(err, "move the bus")
	}
	b.cfg.Logger.Info("bus: moved", "generation", m.to.Generation, "members", len(m.to.Members), "took", time.Since(began).Round(time.Millisecond))
	return false, nil
}

// begin writes the record.
func (m *mover) begin(ctx context.Context) error {
	if err := m.b.recover(ctx); err != nil {
		return err
	}
	if m.b.Layout().Generation != m.from.Generation {
		return lode.Errorf(lode.Conflict, "the bus has just moved")
	}
	var err error
	if m.table, err = m.b.layoutTable(ctx); err != nil {
		return err
	}
	rec, rev, err := m.table.moveRecord(ctx)
	if err != nil {
		return err
	}
	m.to.Generation = max(m.from.Generation, rec.To.Generation) + 1
	m.b.setMoving(m.to.Generation) // before anybody can find the record and ask
	m.rev, err = m.table.writeMove(ctx, moveRecord{m.to, m.b.cfg.Node, phaseCopying}, rev)
	return err
}

func (m *mover) run(ctx context.Context) error {
	if err := m.prepare(ctx); err != nil {
		return err
	}
	m.late = true
	defer m.next.nc.Close()
	m.b.reached("prepared")
	m.mark = time.Now()
	if err := m.ahead(ctx); err != nil {
		return err
	}
	m.lap("ahead")
	m.reachable(ctx)
	ctx, cancel := context.WithTimeout(ctx, frozenMost)
	defer cancel()
	began := time.Now()
	m.mark = began
	stop, err := m.freeze(ctx)
	defer stop()
	if err != nil {
		return err
	}
	m.lap("frozen")
	if err := m.copy(ctx); err != nil {
		return err
	}
	if err := m.commit(ctx); err != nil {
		return err
	}
	m.lap("committed")
	m.spread(context.WithoutCancel(ctx))
	m.b.cfg.Logger.Info("bus: writes have waited", "for", time.Since(began).Round(time.Millisecond))
	return nil
}

// lap notes how long a step took.
func (m *mover) lap(step string) {
	now := time.Now()
	m.b.cfg.Logger.Debug("bus: a step of the move", "step", step, "took", now.Sub(m.mark))
	m.mark = now
	m.b.reached(step)
}

// prepare has the servers of the new generation started, and waits until they
// agree with each other.
func (m *mover) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, prepareWait)
	defer cancel()
	if err := m.all(ctx, m.nodes(), question{Op: "prepare", Layout: m.to}, prepareWait); err != nil {
		return err
	}
	p := &plug{b: m.b, layout: func() Layout { return m.to }}
	nc, js, err := connect(p)
	if err != nil {
		return err
	}
	m.next = side{nc, js}
	m.b.work.Go(func() { // the plug ends with the connection
		for !nc.IsClosed() {
			select {
			case <-m.b.closed:
				nc.Close()
			case <-time.After(100 * time.Millisecond):
			}
		}
		p.close()
	})
	rec, err := json.Marshal(moveRecord{m.to, m.b.cfg.Node, phaseCommitted})
	if err != nil {
		return err
	}
	cfg := tableConfig(layoutTable)
	cfg.Replicas = len(m.to.Members)
	for asked := time.Now(); ; {
		// What the new generation says of itself is true from the commit on.
		tctx, cancel := context.WithTimeout(ctx, tryWait)
		_, err = js.CreateOrUpdateStream(tctx, cfg)
		if err == nil {
			_, err = js.Publish(tctx, tableSubject(layoutTable, moveKey), rec)
		}
		cancel()
		if err == nil {
			return nil
		}
		if time.Since(asked) > askWait { // one may be gone, or may have been started again
			if err := m.all(ctx, m.nodes(), question{Op: "prepare", Layout: m.to}, askWait); err != nil {
				nc.Close()
				return err
			}
			asked = time.Now()
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			nc.Close()
			return lode.Errorf(lode.Unavailable, "the new members of the bus do not find together: %w", err)
		}
	}
}

// all asks several nodes and wants them all to agree.
func (m *mover) all(ctx context.Context, nodes []lode.NodeID, q question, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	errs := make([]error, len(nodes))
	var group sync.WaitGroup
	for i, n := range nodes {
		group.Go(func() { _, errs[i] = m.b.ask(ctx, n, q) })
	}
	group.Wait()
	for i, err := range errs {
		if err != nil {
			return lode.Errorf(lode.Unavailable, "node %s cannot take part in the move of the bus: %w", nodes[i], err)
		}
	}
	return nil
}

// reachable looks who answers, before anybody waits: the freeze would wait for
// who does not.
func (m *mover) reachable(ctx context.Context) {
	m.heard = nil
	for n := range m.b.askAll(ctx, append(m.b.others(), m.b.cfg.Node), question{Op: "layout"}, askWait) {
		m.heard = append(m.heard, n)
	}
}

// freeze holds all writes back until stop is called.
func (m *mover) freeze(ctx context.Context) (stop func(), err error) {
	if m.heard == nil {
		m.reachable(ctx)
	}
	q, nodes := question{Op: "freeze", Layout: m.to}, m.heard
	m.heard = nil
	for n := range m.b.askAll(ctx, nodes, q, settleWait+500*time.Millisecond) {
		m.heard = append(m.heard, n)
	}
	hctx, cancel := context.WithCancel(ctx)
	var holding sync.WaitGroup
	stop = func() { cancel(); holding.Wait() }
	holding.Go(func() {
		for {
			select {
			case <-hctx.Done():
				return
			case <-time.After(holdEvery):
				m.b.askAll(hctx, m.heard, question{Op: "hold", Layout: m.to}, freezeFor)
			}
		}
	})
	var olds []lode.NodeID
	for _, n := range m.from.Members {
		if slices.Contains(m.heard, n.Node) {
			olds = append(olds, n.Node)
		}
	}
	if err := m.all(ctx, olds, question{Op: "cut", Layout: m.from, Nodes: m.heard}, askWait); err != nil {
		return stop, err
	}
	m.streams, err = m.old.streams(ctx)
	if err != nil {
		return stop, err
	}
	return stop, each(m.streams, func(i *jetstream.StreamInfo) error { return m.old.fence(ctx, i, true) })
}

// each does something for every stream, some at a time.
func each(all streamSet, do func(*jetstream.StreamInfo) error) error {
	var mu sync.Mutex
	var first error
	var group sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, i := range all {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := do(i); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = err
				}
			}
		})
	}
	group.Wait()
	return first
}

// commit is the one swap that decides.
func (m *mover) commit(ctx context.Context) error {
	_, err := m.table.writeMove(ctx, moveRecord{m.to, m.b.cfg.Node, phaseCommitted}, m.rev)
	if err == nil || lode.KindOf(err) == lode.Precondition || lode.KindOf(err) == lode.Conflict {
		return err
	}
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callWait)
	defer cancel()
	for {
		rec, _, rerr := m.table.moveRecord(rctx)
		if rerr == nil && rec.To.Generation == m.to.Generation && rec.Phase == phaseCommitted {
			return nil
		}
		if rctx.Err() != nil {
			m.b.doubt()
			return lode.Errorf(lode.Unavailable, "whether the bus has moved is not known: %w", err)
		}
		select {
		case <-time.After(lastPause):
		case <-rctx.Done():
		}
	}
}

// spread has everybody switch over, and the old stores removed at last.
func (m *mover) spread(ctx context.Context) {
	if err := m.b.adopt(m.to); err != nil {
		m.b.cfg.Logger.Error("bus: the new layout cannot be taken over here", "err", err)
	}
	m.b.reached("adopted")
	m.b.askAll(ctx, m.b.others(), question{Op: "switch", Layout: m.to}, askWait)
	m.b.arrive(askWait)
}
