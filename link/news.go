package link

import (
	"sync"

	"lode"
)

// change is a peer that came up or was lost.
type change struct {
	node lode.NodeID
	up   bool
	why  error
}

// news hands changes to Config.Changed, one after the other and in order,
// outside of every lock.
type news struct {
	mu     sync.Mutex
	more   *sync.Cond
	queue  []change
	closed bool
}

func (n *news) init() { n.more = sync.NewCond(&n.mu) }

func (n *news) add(c change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.queue = append(n.queue, c)
		n.more.Signal()
	}
}

// run hands out until close, and then what is left.
func (n *news) run(f func(lode.NodeID, bool, error)) {
	for {
		n.mu.Lock()
		for len(n.queue) == 0 && !n.closed {
			n.more.Wait()
		}
		queue := n.queue
		n.queue = nil
		n.mu.Unlock()
		if len(queue) == 0 {
			return
		}
		for _, c := range queue {
			if f != nil {
				f(c.node, c.up, c.why)
			}
		}
	}
}

func (n *news) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.more.Signal()
}
