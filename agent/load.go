package agent

import (
	"context"
	"math"
	"time"

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
	began := time.Now()
	for _, c := range claims {
		if err := l.want(c.Partition, c.Base); err != nil {
			return nil, err
		}
	}
	if err := l.plan(claims); err != nil {
		return nil, err
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
	if took := time.Since(began); took > slowLoad {
		s.log().Info("agents: state was read from journals", "partitions", len(claims), "messages", l.messages, "took", took.Round(time.Millisecond))
	}
	return out, s.reached(pointLoaded)
}

// slowLoad is how long a load may take without a word in the log.
const slowLoad = 200 * time.Millisecond

// loader reads each journal for many partitions at once.
type loader struct {
	s    *Service
	ctx  context.Context
	logs map[lode.NodeID]*logPart

	messages int // read so far
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
	lp.widen(from, b.Cut-1)
	return nil
}

// widen has more of a journal read, unless all of that was.
func (lp *logPart) widen(from, to uint64) {
	if from < lp.from || to > lp.to {
		lp.from, lp.to, lp.read = min(lp.from, from), max(lp.to, to), false
	}
}

// plan reads what all the claims need, level by level: a base may rest on
// another journal, which only the entries of its own tell.
func (l *loader) plan(claims []owner.Claim) error {
	for {
		whole := true
		for _, c := range claims {
			known, err := l.trace(c.Partition, c.Base)
			if err != nil {
				return err
			}
			whole = whole && known
		}
		if whole {
			return nil
		}
		for node := range l.logs {
			if _, err := l.log(node); err != nil {
				return err
			}
		}
	}
}

// trace follows a base down to where the copy here, or a snapshot, can go on
// from, and wants what is not read of that. known: nothing is missing.
func (l *loader) trace(p journal.Partition, b journal.Base) (known bool, err error) {
	for b.Journal != "" {
		if err := l.want(p, b); err != nil {
			return false, err
		}
		lp := l.logs[b.Journal]
		if !lp.read {
			return false, nil
		}
		es := mine(lp.entries[p], b)
		if _, goes, err := l.copyAt(p, b, lp); goes || err != nil {
			return true, err
		}
		if lp.from > 0 {
			lp.widen(0, lp.to)
			return false, nil
		}
		if !newest(es).Manifest.IsZero() {
			return true, nil
		}
		take := takeOf(es)
		if take == nil {
			return true, nil // bring says so
		}
		b = take.e.Base
	}
	return true, nil
}

// copyAt is the position of that base at which the copy here is; goes: what was
// read of the journal goes on from there.
func (l *loader) copyAt(p journal.Partition, b journal.Base, lp *logPart) (at uint64, goes bool, err error) {
	mark, ok, err := l.s.db.Part(p).Mark()
	return mark.Pos, ok && mark.Epoch == b.Epoch && mark.Journal == b.Journal && (lp.from > 0 || lp.first <= mark.Pos+1), err
}

// takeOf is the entry with which an epoch began, nil if it was not read.
func takeOf(es []placed) *placed {
	for i := range es {
		if es[i].e.Op == journal.Take {
			return &es[i]
		}
	}
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
		l.messages++
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
	loaded := newest(es)
	at, goes, err := l.copyAt(p, b, lp)
	if err != nil {
		return owner.Loaded{}, err
	}
	if goes {
		return loaded, l.replay(b, es, at)
	}
	if lp.from > 0 { // others needed less of the journal
		lp.widen(0, lp.to)
		return l.bring(p, b)
	}
	if !loaded.Manifest.IsZero() {
		if err := part.Restore(l.ctx, l.s.cfg.Blobs, loaded.Manifest); err != nil {
			return owner.Loaded{}, err
		}
		return loaded, l.replay(b, es, loaded.Covers)
	}
	take := takeOf(es)
	if take == nil {
		return owner.Loaded{}, lode.Errorf(lode.Damaged, "the journal of node %s has no beginning of %s in epoch %d before %d", b.Journal, p, b.Epoch, b.Cut).
			WithHint("restore the folder of the bus from a backup")
	}
	if err := l.want(p, take.e.Base); err != nil {
		return owner.Loaded{}, err
	}
	if _, err := l.bring(p, take.e.Base); err != nil {
		return owner.Loaded{}, err
	}
	if err := l.s.db.Apply(b.Journal, take.pos, []state.Applied{{Part: p, Epoch: b.Epoch}}); err != nil {
		return owner.Loaded{}, err
	}
	return owner.Loaded{}, l.replay(b, es, take.pos)
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

// replay applies entries of one partition behind a position, many at once.
func (l *loader) replay(b journal.Base, es []placed, behind uint64) error {
	var list []state.Applied
	size := 0
	for i := range es {
		if e := &es[i].e; es[i].pos > behind {
			recall(e)
			list = append(list, state.Applied{Part: e.Partition, Epoch: e.Epoch, Changes: e.Changes})
			for _, c := range e.Changes {
				size += len(c.Key) + len(c.Value)
			}
		}
		if last := i == len(es)-1; len(list) > 0 && (last || size > replayBatch && es[i+1].pos > es[i].pos) {
			if err := l.s.db.Apply(b.Journal, es[i].pos, list); err != nil {
				return err
			}
			list, size = list[:0], 0
		}
	}
	return nil
}

// replayBatch is how many bytes of changes are applied at once.
const replayBatch = 1 << 20
