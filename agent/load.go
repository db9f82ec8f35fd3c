package agent

import (
	"context"
	"math"

	"lode"
	"lode/agent/journal"
	"lode/agent/owner"
	"lode/agent/state"
	"lode/bus"
)

// kept is what is known of the snapshots of a partition that this node has.
type kept struct {
	manifest lode.Digest // of the newest one; zero: none
	from     uint64      // position in this node's journal that it covers
	settled  bool        // nobody needs its base any more
	journal  lode.NodeID // to which from belongs; "": another node's
}

// load brings the state of partitions into this node: what the copy here
// lacks, from the journals that their bases name, and from the snapshots that
// these name.
func (s *Service) load(ctx context.Context, claims []owner.Claim) ([]owner.Loaded, error) {
	if err := s.reached(pointLoad); err != nil {
		return nil, err
	}
	l := &loader{s: s, ctx: ctx, logs: map[lode.NodeID]*logPart{}}
	for _, c := range claims {
		if err := l.want(c.Partition, c.Base); err != nil {
			return nil, err
		}
	}
	out := make([]owner.Loaded, len(claims))
	for i, c := range claims {
		d, err := l.bring(c.Partition, c.Base)
		if err != nil {
			return nil, err
		}
		out[i] = d
		s.mu.Lock()
		s.held[c.Partition] = kept{manifest: d.Manifest}
		s.mu.Unlock()
	}
	return out, s.reached(pointLoaded)
}

// loader reads each journal once for many partitions.
type loader struct {
	s    *Service
	ctx  context.Context
	logs map[lode.NodeID]*logPart
}

// logPart is what was read of a journal: the entries by partition.
type logPart struct {
	from, to uint64 // from 0: from its front on
	first    uint64 // position of the first message that was read
	entries  map[journal.Partition][]placed
	read     bool
}

// placed is an entry and where it stands.
type placed struct {
	pos uint64
	e   journal.Entry
}

// want notes how much of a journal will be needed.
func (l *loader) want(p journal.Partition, b journal.Base) error {
	if b.Journal == "" {
		return nil
	}
	lp := l.logs[b.Journal]
	if lp == nil {
		lp = &logPart{from: math.MaxUint64}
		l.logs[b.Journal] = lp
	}
	from := uint64(0)
	m, ok, err := l.s.db.Part(p).Mark()
	if err != nil {
		return err
	}
	if ok && m.Epoch == b.Epoch && m.Journal == b.Journal {
		from = m.Pos + 1
	}
	lp.from, lp.to = min(lp.from, from), max(lp.to, b.Cut-1)
	return nil
}

// log reads what is needed of a journal.
func (l *loader) log(node lode.NodeID) (*logPart, error) {
	lp := l.logs[node]
	if lp.read {
		return lp, nil
	}
	lp.entries, lp.first = map[journal.Partition][]placed{}, 0
	err := l.s.cfg.Bus.ReadLog(l.ctx, owner.JournalName(node), lp.from, lp.to, func(m bus.Message) error {
		if lp.first == 0 {
			lp.first = m.Seq
		}
		for _, b := range m.Entries {
			e, err := journal.Decode(b)
			if err != nil {
				return lode.Errorf(lode.Damaged, "the journal of node %s at %d: %w", node, m.Seq, err).WithHint("restore the folder of the bus from a backup")
			}
			lp.entries[e.Partition] = append(lp.entries[e.Partition], placed{m.Seq, e})
		}
		return nil
	})
	if lode.KindOf(err) == lode.Gone && lp.from > 0 { // the copy here is too old to go on from
		lp.from = 0
		return l.log(node)
	}
	lp.read = err == nil
	return lp, err
}

// bring makes the copy here what the base says.
func (l *loader) bring(p journal.Partition, b journal.Base) (owner.Loaded, error) {
	part := l.s.db.Part(p)
	if b.Journal == "" {
		return owner.Loaded{}, part.Drop()
	}
	lp, err := l.log(b.Journal)
	if err != nil {
		return owner.Loaded{}, err
	}
	es := mine(lp.entries[p], b)
	mark, ok, err := part.Mark()
	if err != nil {
		return owner.Loaded{}, err
	}
	loaded := newest(es)
	if ok && mark.Epoch == b.Epoch && mark.Journal == b.Journal && (lp.from > 0 || lp.first <= mark.Pos+1) {
		return loaded, l.replay(b, es, mark.Pos)
	}
	if lp.from > 0 { // others needed less of the journal
		lp.from, lp.read = 0, false
		return l.bring(p, b)
	}
	if !loaded.Manifest.IsZero() {
		if err := part.Restore(l.ctx, l.s.cfg.Blobs, loaded.Manifest); err != nil {
			return owner.Loaded{}, err
		}
		return loaded, l.replay(b, es, loaded.Covers)
	}
	for _, x := range es {
		if x.e.Op != journal.Take {
			continue
		}
		if err := l.want(p, x.e.Base); err != nil {
			return owner.Loaded{}, err
		}
		if deeper := l.logs[x.e.Base.Journal]; deeper != nil && deeper != lp {
			deeper.read = false
		}
		if x.e.Base.Journal == b.Journal { // this very journal, before the take
			if _, err := l.same(p, x.e.Base, lp); err != nil {
				return owner.Loaded{}, err
			}
		} else if _, err := l.bring(p, x.e.Base); err != nil {
			return owner.Loaded{}, err
		}
		if err := l.s.db.Apply(b.Journal, x.pos, []state.Applied{{Part: p, Epoch: b.Epoch}}); err != nil {
			return owner.Loaded{}, err
		}
		return owner.Loaded{}, l.replay(b, es, x.pos)
	}
	return owner.Loaded{}, lode.Errorf(lode.Damaged, "the journal of node %s has no beginning of %s in epoch %d before %d", b.Journal, p, b.Epoch, b.Cut).
		WithHint("restore the folder of the bus from a backup")
}

// same is bring for an earlier epoch in a journal that was read whole.
func (l *loader) same(p journal.Partition, b journal.Base, _ *logPart) (owner.Loaded, error) {
	return l.bring(p, b)
}

// mine are the entries of one epoch before the cut.
func mine(es []placed, b journal.Base) []placed {
	var out []placed
	for _, x := range es {
		if x.e.Epoch == b.Epoch && x.pos < b.Cut {
			out = append(out, x)
		}
	}
	return out
}

// newest is the newest snapshot that entries name.
func newest(es []placed) owner.Loaded {
	for i := len(es) - 1; i >= 0; i-- {
		if e := &es[i].e; e.Op == journal.Snap {
			return owner.Loaded{Manifest: e.Manifest, Covers: e.Covers}
		}
	}
	return owner.Loaded{}
}

// recall makes of an entry's last change one that counts here.
func recall(e *journal.Entry) {
	if n := len(e.Changes); n > 0 && e.Changes[n-1].Kind == journal.Recall {
		e.Changes[n-1].Kind = journal.Set
	}
}

// replay applies entries behind a position.
func (l *loader) replay(b journal.Base, es []placed, behind uint64) error {
	for i := 0; i < len(es); {
		pos := es[i].pos
		var list []state.Applied
		for ; i < len(es) && es[i].pos == pos; i++ {
			if pos > behind {
				recall(&es[i].e)
				list = append(list, state.Applied{Part: es[i].e.Partition, Epoch: es[i].e.Epoch, Changes: es[i].e.Changes})
			}
		}
		if len(list) == 0 {
			continue
		}
		if err := l.s.db.Apply(b.Journal, pos, list); err != nil {
			return err
		}
	}
	return nil
}
