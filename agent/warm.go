package agent

import (
	"context"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/agent/owner"
	"lode/agent/state"
	"lode/link"
)

const (
	// warmFrom is how much journal a new owner would have to read before it is
	// worth while to bring it a snapshot first.
	warmFrom = 1 << 20
	warmWait = 10 * time.Second
)

var _ owner.Warmer = (*hooks)(nil)

// Warm implements owner.Warmer: the partition's state goes to its next owner as
// a snapshot while turns go on. What is written meanwhile is all that the new
// owner reads of the journal then. No entry names the snapshot: who has not got
// it reads the journal.
func (h *hooks) Warm(ctx context.Context, id journal.Partition, to lode.NodeID) {
	s := (*Service)(h)
	s.mu.Lock()
	t, k := s.term, s.held[id]
	s.mu.Unlock()
	p := s.partition(id)
	if t == nil || p == nil || t.kept.Load() < warmFrom {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, warmWait)
	defer cancel()
	pos, err := s.db.Applied(s.cfg.Self)
	if err != nil {
		return
	}
	manifest, _, err := p.part.Save(ctx, s.cfg.Blobs, k.manifest, state.Mark{Epoch: p.epoch, Journal: s.cfg.Self, Pos: pos})
	if err == nil {
		e := newEnc(128)
		e.u(askWarm)
		e.s(string(id.Namespace))
		e.s(string(id.Kind))
		e.u(uint64(id.N))
		e.bytes(manifest[:])
		_, _, err = s.cfg.Peers.Ask(ctx, to, e.b, nil)
	}
	if err != nil {
		s.log().Debug("a partition moves without a snapshot before it", "partition", id, "to", to, "err", err)
	}
}

// serveWarm is the other side of Warm.
func (s *Service) serveWarm(ctx context.Context, in *link.Incoming, d *dec) error {
	id := journal.Partition{Namespace: lode.Namespace(d.s()), Kind: lode.Name(d.s()), N: int(d.u())}
	var manifest lode.Digest
	b := d.bytes()
	if !d.end() || len(b) != len(manifest) {
		return lode.Errorf(lode.Invalid, "a question of node %s cannot be read", in.From)
	}
	copy(manifest[:], b)
	if o, ok := s.owners.Lookup(id); s.partition(id) != nil || ok && (o.Node != in.From || o.State != owner.StateClosed) {
		return lode.Errorf(lode.Precondition, "%s does not come from node %s", id, in.From)
	}
	if err := s.db.Part(id).Restore(ctx, s.cfg.Blobs, manifest); err != nil {
		return err
	}
	return replyOnly(in, resultDone)
}
