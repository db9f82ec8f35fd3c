package bus

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

// Most of a move is done while writes go on: each stream is copied whole, and
// what is written after that is followed, message by message, at the same
// positions. A position whose message is gone already (a newer one of the same
// key, a front that was trimmed) is filled with one of a subject that no key
// has, and the fillers are removed at the end. What is known to be equal is
// not copied or compared again once the writes wait, as long as the state of
// the stream is the same: a stream only grows at its end, and what is removed
// makes it shorter.

const (
	aheadWait   = 2 * time.Minute // and more by the size
	aheadRounds = 4
	followMost  = 1000 // messages: beyond it, to copy the stream is faster
)

// copies is what is known of the streams of the next generation.
type copies struct {
	mu    sync.Mutex
	last  map[string]uint64                // the last position of the copy
	equal map[string]jetstream.StreamState // of the original, when the copy was equal to it
	upto  map[string]uint64                // logs: equal up to here
}

func (c *copies) reset(name string, last uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil {
		c.last, c.equal, c.upto = make(map[string]uint64), make(map[string]jetstream.StreamState), make(map[string]uint64)
	}
	c.last[name] = last
	delete(c.equal, name)
	delete(c.upto, name)
}

func (c *copies) grown(name string, last uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last[name] = last
}

// proven notes that a copy is equal: as long as the original is in this state,
// and a log's up to its last position whatever comes.
func (c *copies) proven(name string, s jetstream.StreamState, whole bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if isLog(name) {
		c.upto[name] = c.last[name]
	}
	if whole {
		c.equal[name] = s
	}
}

// fits reports whether the copy is known to be equal to an original in that
// state.
func (c *copies) fits(i *jetstream.StreamInfo) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.equal[i.Config.Name]
	return ok && sameState(s, i.State)
}

func (c *copies) of(name string) (last, upto uint64, there bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last, there = c.last[name]
	return last, c.upto[name], there
}

func sameState(a, b jetstream.StreamState) bool {
	return a.Msgs == b.Msgs && a.FirstSeq == b.FirstSeq && a.LastSeq == b.LastSeq
}

// changed are the streams whose copy is not known to be equal.
func (m *mover) changed() streamSet {
	out := make(streamSet)
	for name, i := range m.streams {
		if !m.copies.fits(i) {
			out[name] = i
		}
	}
	return out
}

// ahead copies everything while writes go on, again and again until little is
// left. What it cannot prove is left to copy.
func (m *mover) ahead(ctx context.Context) (err error) {
	if m.streams, err = m.old.streams(ctx); err != nil {
		return err
	}
	var bytes uint64
	for _, i := range m.streams {
		bytes += i.State.Bytes
	}
	ctx, cancel := context.WithTimeout(ctx, aheadWait+time.Duration(bytes>>20)*time.Second)
	defer cancel()
	for range aheadRounds {
		todo := m.changed()
		if len(todo) == 0 {
			break
		}
		if err := each(todo, func(i *jetstream.StreamInfo) error { return m.catchUp(ctx, i) }); err != nil {
			return err
		}
		if err := m.whole(ctx); err != nil {
			return err
		}
		m.lap("copied ahead")
		each(todo, func(i *jetstream.StreamInfo) error { m.prove(ctx, i); return nil })
		if m.streams, err = m.old.streams(ctx); err != nil {
			return err
		}
	}
	if len(m.to.Members) == 1 {
		if err := m.firm(ctx); err != nil {
			return err
		}
	}
	return m.all(ctx, m.nodes(), question{Op: "sync", Layout: m.to}, aheadWait)
}

// firm has a member that is alone put what follows on its disk at once, and
// waits until it is back.
func (m *mover) firm(ctx context.Context) error {
	if err := m.all(ctx, m.nodes(), question{Op: "firm", Layout: m.to}, aheadWait); err != nil {
		return err
	}
	for {
		tctx, cancel := context.WithTimeout(ctx, tryWait)
		_, err := m.next.streams(tctx)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(redial):
		case <-ctx.Done():
			return err
		}
	}
}

// nodes are the new members.
func (m *mover) nodes() (out []lode.NodeID) {
	for _, n := range m.to.Members {
		out = append(out, n.Node)
	}
	return out
}

// prove compares a copy while the original may go on changing.
func (m *mover) prove(ctx context.Context, i *jetstream.StreamInfo) {
	name := i.Config.Name
	last, upto, _ := m.copies.of(name)
	part := span{}
	if isLog(name) {
		if part = (span{upto, last}); last <= upto {
			part = span{after: upto}
		}
	}
	err := compareStreams(ctx, m.old, m.next, name, part, 4*readWait)
	st, serr := m.old.js.Stream(ctx, name)
	if serr != nil {
		return
	}
	still := sameState(st.CachedInfo().State, i.State)
	if err == nil && isLog(name) {
		var copied jetstream.Stream
		if copied, serr = m.next.js.Stream(ctx, name); serr != nil {
			return
		}
		still = still && copied.CachedInfo().State.Msgs == i.State.Msgs // its front is trimmed too
	}
	if err == nil {
		m.copies.proven(name, i.State, still && last == i.State.LastSeq)
		return
	}
	if still && lode.KindOf(err) == lode.Damaged {
		m.b.cfg.Logger.Debug("bus: a copy is made again", "err", err)
		m.recopy(ctx, i)
	}
}

// copy brings over what was not known to be equal, when nobody writes any
// more, and compares it.
func (m *mover) copy(ctx context.Context) (err error) {
	if m.streams, err = m.old.streams(ctx); err != nil {
		return err
	}
	todo := m.changed()
	if err := m.removeOthers(ctx); err != nil {
		return err
	}
	if err := each(todo, func(i *jetstream.StreamInfo) error { return m.catchUp(ctx, i) }); err != nil {
		return err
	}
	m.lap("copied")
	if err := m.whole(ctx); err != nil {
		return err
	}
	m.lap("complete")
	if err := m.compare(ctx, todo); err != nil {
		return err
	}
	m.lap("compared")
	if err := m.all(ctx, m.nodes(), question{Op: "sync", Layout: m.to}, frozenMost); err != nil {
		return err
	}
	after, err := m.old.streams(ctx)
	if err != nil {
		return err
	}
	for name, i := range after {
		b := m.streams[name]
		if b == nil || !isFenced(i) || i.State.LastSeq != b.State.LastSeq {
			return lode.Errorf(lode.Unavailable, "%s was written to while it was copied", name)
		}
	}
	m.lap("synced")
	return nil
}

// compare compares copies of what does not change any more; one that is not
// equal is made once more.
func (m *mover) compare(ctx context.Context, todo streamSet) error {
	bad := make(streamSet)
	var mu sync.Mutex
	check := func(i *jetstream.StreamInfo) error {
		part := span{}
		if isLog(i.Config.Name) {
			_, part.after, _ = m.copies.of(i.Config.Name)
		}
		err := sameStream(ctx, m.old, m.next, i.Config.Name, part)
		if lode.KindOf(err) == lode.Damaged {
			mu.Lock()
			defer mu.Unlock()
			bad[i.Config.Name] = i
			return nil
		}
		return err
	}
	if err := each(todo, check); err != nil || len(bad) == 0 {
		return err
	}
	if err := each(bad, func(i *jetstream.StreamInfo) error { return m.recopy(ctx, i) }); err != nil {
		return err
	}
	if err := m.whole(ctx); err != nil {
		return err
	}
	return each(bad, func(i *jetstream.StreamInfo) error { return sameStream(ctx, m.old, m.next, i.Config.Name, span{}) })
}

// removeOthers removes copies of what is not there any more.
func (m *mover) removeOthers(ctx context.Context) error {
	there, err := m.next.streams(ctx)
	if err != nil {
		return err
	}
	for name := range there {
		if m.streams[name] != nil {
			continue
		}
		if err := m.next.js.DeleteStream(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// catchUp makes the copy of a stream, or brings it up to where the original
// was.
func (m *mover) catchUp(ctx context.Context, i *jetstream.StreamInfo) error {
	name := i.Config.Name
	if _, _, there := m.copies.of(name); !there {
		return m.copyOne(ctx, i)
	}
	fctx, cancel := context.WithTimeout(ctx, 2*tryWait)
	defer cancel()
	last, err := m.follow(fctx, i)
	if err == nil {
		m.copies.grown(name, last)
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	m.b.cfg.Logger.Debug("bus: a stream is copied again instead of followed", "stream", name, "err", err)
	return m.recopy(ctx, i)
}

var errFar = errors.New("the copy is too far behind")

// follow writes behind the end of a copy what the original has there, and
// trims it like the original.
func (m *mover) follow(ctx context.Context, i *jetstream.StreamInfo) (last uint64, err error) {
	name := i.Config.Name
	st, err := m.next.js.Stream(ctx, name)
	if err != nil {
		return 0, err
	}
	have := st.CachedInfo().State
	if have.LastSeq > i.State.LastSeq {
		return have.LastSeq, nil // the original has grown while it was copied first
	}
	if i.State.LastSeq-have.LastSeq > followMost {
		return 0, errFar
	}
	filled := false
	var acks []jetstream.PubAckFuture
	for seq := have.LastSeq + 1; seq <= i.State.LastSeq; seq++ {
		msg, err := m.original(ctx, name, seq)
		if err != nil {
			return 0, err
		}
		if msg == nil {
			filled, msg = true, &nats.Msg{Subject: fillSubject(name)}
		}
		ack, err := m.next.js.PublishMsgAsync(msg, jetstream.WithRetryAttempts(0))
		if err != nil {
			return 0, err
		}
		acks = append(acks, ack)
	}
	for n, ack := range acks {
		select {
		case a := <-ack.Ok():
			if a.Sequence != have.LastSeq+1+uint64(n) || a.Duplicate {
				return 0, lode.Errorf(lode.Damaged, "the copy of %s took a message at %d instead of %d", name, a.Sequence, have.LastSeq+1+uint64(n))
			}
		case err := <-ack.Err():
			return 0, err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	switch {
	case isLog(name) && have.FirstSeq < i.State.FirstSeq:
		err = st.Purge(ctx, purgeBefore(i.State.FirstSeq))
	case !isLog(name) && filled:
		err = st.Purge(ctx, jetstream.WithPurgeSubject(fillSubject(name)))
	}
	return i.State.LastSeq, err
}

// original is the message at a position of the old generation as it is to be
// written again; nil: it is gone.
func (m *mover) original(ctx context.Context, stream string, seq uint64) (*nats.Msg, error) {
	raw, err := m.b.get(ctx, stream, getRequest{Seq: seq})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &nats.Msg{Subject: raw.Subject, Header: lasting(raw.Header), Data: raw.Data}, nil
}

// recopy makes a copy from the start.
func (m *mover) recopy(ctx context.Context, i *jetstream.StreamInfo) error {
	if err := m.next.js.DeleteStream(ctx, i.Config.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	return m.copyOne(ctx, i)
}

// settleRestore is how long the other members get to take a restored stream in
// before the next one is restored.
const settleRestore = 30 * time.Millisecond

// copyOne copies a stream, again if a server did not answer in time. One is
// restored at a time: the server looks through its streams without a lock when
// it begins with one, and dies if another is added at that instant
// (nats-server 2.15.2, RestoreStreamV2).
func (m *mover) copyOne(ctx context.Context, i *jetstream.StreamInfo) (err error) {
	m.restoring.Lock()
	defer m.restoring.Unlock()
	if len(m.to.Members) > 1 {
		defer time.Sleep(settleRestore)
	}
	cfg := i.Config
	cfg.Subjects, cfg.Replicas = subjectsOf(cfg.Name), len(m.to.Members)
	for range 3 {
		tctx, cancel := context.WithTimeout(ctx, tryWait+time.Duration(i.State.Bytes/(10<<20)+i.State.Msgs/10_000)*time.Second)
		err = copyStream(tctx, m.old, m.next, cfg)
		if err == nil {
			var st jetstream.Stream
			if st, err = m.next.js.Stream(tctx, cfg.Name); err == nil {
				m.copies.reset(cfg.Name, st.CachedInfo().State.LastSeq)
			}
		}
		cancel()
		if err == nil || ctx.Err() != nil {
			break
		}
		dctx, cancel := context.WithTimeout(ctx, tryWait)
		m.next.js.DeleteStream(dctx, cfg.Name) // what there is of it; the next attempt tells
		cancel()
	}
	if err != nil {
		return lode.Errorf(lode.Unavailable, "copy %s: %w", cfg.Name, err)
	}
	return nil
}

// whole waits until every new member has all of every copy. The server counts
// one as current before it has been told of what was restored, so each member
// is asked what it has itself. A member may also miss the offer of a copy, and
// asks for it again only after a while: a stream that is late for its size is
// copied once more.
func (m *mover) whole(ctx context.Context) error {
	began := time.Now()
	for patience := time.Duration(1); ; {
		late := m.behind(ctx)
		if len(late) == 0 {
			return nil
		}
		again := false
		for _, i := range late {
			fair := time.Second + time.Duration(i.State.Bytes/(20<<20))*time.Second
			if time.Since(began) < patience*fair {
				continue
			}
			again = true
			if err := m.recopy(ctx, i); err != nil {
				return err
			}
		}
		if again {
			began = time.Now()
			patience *= 2
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return lode.Errorf(lode.Unavailable, "the copies of the new generation do not become complete: %s is not", late[0].Config.Name)
		}
	}
}

// behind lists the streams that a new member lacks a part of.
func (m *mover) behind(ctx context.Context) (late []*jetstream.StreamInfo) {
	nodes := m.nodes()
	answers := m.b.askAll(ctx, nodes, question{Op: "state", Layout: m.to}, askWait)
	for name, i := range m.streams {
		want, _, there := m.copies.of(name)
		if !there {
			continue // it is new, and copied next
		}
		first := answers[nodes[0]].Streams[name]
		for _, n := range nodes {
			s, ok := answers[n].Streams[name]
			if !ok || s.Last != want || s.Msgs != first.Msgs || s.Msgs == 0 && i.State.Msgs > 0 {
				late = append(late, i)
				break
			}
		}
	}
	return late
}
