package store

import (
	"context"
	"os"

	"golang.org/x/sync/errgroup"

	"lode"
)

// Shelf is this node's side of the store, for the other nodes of its cluster.
func (s *Store) Shelf() *Shelf { return s.shelf }

// Local says which blobs are here, at home or in the cache. It looks for their
// names alone: a copy that is damaged is found when it is opened.
func (s *Store) Local(ds []lode.Digest) []bool {
	out := make([]bool, len(ds))
	for i, d := range ds {
		for _, t := range s.shelf.trees() {
			if _, err := os.Stat(t.path(d)); err == nil {
				out[i] = true
				break
			}
		}
	}
	return out
}

// Where says for each blob which living nodes have it, at home or in a cache,
// this one included, in the blob's order: the first is where it belongs most.
// Each node is asked once for all; one that does not answer within a second
// counts for having none. Without a cluster the lists are empty.
func (s *Store) Where(ctx context.Context, ds []lode.Digest) [][]lode.NodeID {
	if s.peers == nil {
		return make([][]lode.NodeID, len(ds))
	}
	on := s.peers.where(ctx, ds)
	for i, here := range s.Local(ds) {
		if here {
			on[i] = lode.Rendezvous(ds[i][:], append(on[i], s.peers.Self))
		}
	}
	return on
}

// warmAtOnce is how many blobs Warm fetches side by side.
const warmAtOnce = 4

// Warm makes sure that the blobs are here. It fetches those that are not, some
// at once, and stops at the first that cannot be had. They may be evicted again
// once others need the room.
func (s *Store) Warm(ctx context.Context, ds []lode.Digest) error {
	var missing []lode.Digest
	for i, here := range s.Local(ds) {
		if !here {
			missing = append(missing, ds[i])
		}
	}
	if s.peers != nil && s.replicas == nil && len(missing) > 1 {
		ctx = s.peers.hints(ctx, missing)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(warmAtOnce)
	for _, d := range missing {
		g.Go(func() error {
			b, err := s.Open(ctx, d)
			if err != nil {
				return err
			}
			return b.Close()
		})
	}
	return g.Wait()
}
