package agent

import (
	"context"

	"lode"
	"lode/agent/journal"
	"lode/agent/owner"
	"lode/agent/state"
	"lode/bus"
)

// Named are the blobs that agents need, of all nodes: what is not among them
// and was put well before the call may be deleted. It reads every journal, for
// these tell all: each partition's newest snapshot is named by an entry that is
// kept, and what is in no snapshot yet by the entries behind it. Journals are
// on the bus, so those of nodes that are down are read too. An error means
// that nothing may be deleted.
func (s *Service) Named(ctx context.Context) (map[lode.Digest]bool, error) {
	nodes, err := s.owners.Journals(ctx)
	if err != nil {
		return nil, err
	}
	n := &naming{s: s, blobs: map[lode.Digest]bool{}, read: map[lode.Digest]bool{}}
	for _, node := range nodes {
		if err := n.journal(ctx, node); err != nil {
			return nil, err
		}
	}
	return n.blobs, nil
}

// naming is a Named under way.
type naming struct {
	s     *Service
	blobs map[lode.Digest]bool
	read  map[lode.Digest]bool // snapshots all of whose blobs are there
}

// journal adds what one journal names.
func (n *naming) journal(ctx context.Context, node lode.NodeID) error {
	name := owner.JournalName(node)
	end, err := n.s.cfg.Bus.LogEnd(ctx, name)
	if lode.KindOf(err) == lode.NotFound || err == nil && end == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	newest := map[journal.Partition]lode.Digest{}
	older := map[lode.Digest]bool{} // snapshots that newer ones have replaced
	err = n.s.cfg.Bus.ReadLog(ctx, name, 0, end, func(m bus.Message) error {
		for _, b := range m.Entries {
			e, err := journal.Decode(b)
			if err != nil {
				return err
			}
			n.values(&e)
			if e.Manifest.IsZero() {
				continue
			}
			if d, ok := newest[e.Partition]; ok {
				older[d] = true
			}
			newest[e.Partition] = e.Manifest
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range newest {
		delete(older, d)
		if err := n.snapshot(ctx, d); err != nil {
			return err
		}
	}
	for d := range older {
		if err := n.snapshot(ctx, d); err != nil && lode.KindOf(err) != lode.NotFound {
			return err
		}
	}
	return nil
}

// snapshot adds a snapshot with everything in it.
func (n *naming) snapshot(ctx context.Context, manifest lode.Digest) error {
	if n.read[manifest] {
		return nil
	}
	m, err := state.ReadManifest(ctx, n.s.cfg.Blobs, manifest)
	if err != nil {
		return err
	}
	n.read[manifest], n.blobs[manifest] = true, true
	for _, d := range m.Blobs() {
		n.blobs[d] = true
	}
	return nil
}

// values adds the blobs that an entry's values of state name.
func (n *naming) values(e *journal.Entry) {
	for i := range e.Changes {
		c := &e.Changes[i]
		if c.Kind != journal.Set || len(c.Key) == 0 || c.Key[0] != spaceAgent {
			continue
		}
		if _, rest, ok := unescape(c.Key[1:]); !ok || len(rest) == 0 || rest[0] != partState {
			continue
		}
		if _, d, _, blob, err := state.DecodeValue(c.Value); err == nil && blob {
			n.blobs[d] = true
		}
	}
}
