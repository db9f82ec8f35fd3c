package agent

import (
	"context"
	"sync"

	"lode"
	"lode/link"
)

// net is what is between the nodes of a world.
type net struct {
	mu    sync.Mutex
	quiet map[lode.NodeID]bool
}

func (x *net) silent(n lode.NodeID) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.quiet[n]
}

// Ask implements Peers.
func (n *node) Ask(ctx context.Context, to lode.NodeID, head, body []byte) (ahead, abody []byte, err error) {
	return nil, nil, &lode.Error{Kind: lode.Unavailable, Err: link.ErrNotSent}
}
