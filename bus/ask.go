package bus

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"lode"
)

// What the buses of two nodes say to each other, by ClusterConfig.Ask: JSON
// both ways, one question and its answer.
type question struct {
	Op     string `json:"op"`
	Layout Layout `json:"layout,omitzero"` // which one it is about
	// Nodes of freeze: who may go on reaching the members' servers.
	Nodes []lode.NodeID `json:"nodes,omitempty"`
}

type answer struct {
	Layout Layout `json:"layout,omitzero"` // the present one of who answers
	// Voting says that who answers runs the server of that layout.
	Voting bool   `json:"voting,omitempty"`
	Moving uint64 `json:"moving,omitempty"` // the generation that who answers is making
	View   *view  `json:"view,omitempty"`   // of health
	// Streams of state: what the node's own server of q.Layout holds.
	Streams map[string]held `json:"streams,omitempty"`
	Kind    string          `json:"kind,omitempty"` // of an error
	Error   string          `json:"error,omitempty"`
}

// held is one node's own copy of a stream.
type held struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Msgs  uint64 `json:"msgs"`
}

const (
	askWait    = 2 * time.Second
	doubtPause = 200 * time.Millisecond
	lookEvery  = 10 * time.Second // at the layout of others, without a reason
)

// ask puts a question to another node, or to this one.
func (b *Bus) ask(ctx context.Context, to lode.NodeID, q question) (answer, error) {
	msg, err := json.Marshal(q)
	if err != nil {
		return answer{}, lode.Errorf(lode.Internal, "ask node %s: %w", to, err)
	}
	var back []byte
	if to == b.cfg.Node {
		back, err = b.Handle(ctx, to, msg)
	} else {
		back, err = b.cfg.Cluster.Ask(ctx, to, msg)
	}
	if err != nil {
		return answer{}, err
	}
	var a answer
	if err := json.Unmarshal(back, &a); err != nil {
		return a, lode.Errorf(lode.Internal, "the answer of node %s cannot be read: %w", to, err)
	}
	if a.Error != "" {
		return a, lode.Errorf(lode.Kind(a.Kind), "node %s: %s", to, a.Error)
	}
	return a, nil
}

// askAll puts a question to many at once; a node that does not answer in time
// has no answer.
func (b *Bus) askAll(ctx context.Context, to []lode.NodeID, q question, wait time.Duration) map[lode.NodeID]answer {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	out := make(map[lode.NodeID]answer)
	for _, n := range to {
		all.Go(func() {
			if a, err := b.ask(ctx, n, q); err == nil {
				mu.Lock()
				out[n] = a
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return out
}

// Handle answers a question of another node's bus.
func (b *Bus) Handle(ctx context.Context, from lode.NodeID, msg []byte) ([]byte, error) {
	var q question
	if err := json.Unmarshal(msg, &q); err != nil {
		return nil, lode.Errorf(lode.Invalid, "a question of node %s cannot be read: %w", from, err)
	}
	var a answer
	if err := b.handle(ctx, q); err != nil {
		a.Kind, a.Error = string(lode.KindOf(err)), err.Error()
	}
	a.Layout = b.Layout()
	a.Voting = b.instance(a.Layout.Generation) != nil
	if q.Op == "health" {
		a.View = b.instance(q.Layout.Generation).sees()
	}
	if q.Op == "state" {
		a.Streams = b.instance(q.Layout.Generation).holds()
	}
	b.mu.Lock()
	a.Moving = b.moving
	b.mu.Unlock()
	return json.Marshal(a)
}

func (b *Bus) handle(ctx context.Context, q question) error {
	select {
	case <-b.closed:
		return errClosed()
	default:
	}
	switch q.Op {
	case "layout", "state", "health":
		return nil
	}
	return b.takePart(ctx, q)
}

// doubt has the others asked for the layout soon: something was not where it
// should be.
func (b *Bus) doubt() {
	select {
	case b.wonder <- struct{}{}:
	default:
	}
}

// startCluster begins to follow the layout.
func (b *Bus) startCluster(context.Context) error {
	if b.cfg.Cluster == nil {
		return nil
	}
	b.work.Go(b.tend)
	return nil
}

// tend learns of layouts that this node was not told of.
func (b *Bus) tend() {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		b.learn()
		if b.gate.frozen() == nil && b.nc.IsConnected() {
			// Nobody holds this node back: if there is a move, it has ended.
			ctx, cancel := context.WithTimeout(b.ctx, 3*callWait)
			if err := b.recover(ctx); err != nil {
				b.cfg.Logger.Debug("bus: look for a move that was left", "err", err)
			}
			cancel()
		}
		select {
		case <-b.closed:
			return
		case <-time.After(doubtPause):
		}
		select {
		case <-b.closed:
			return
		case <-b.wonder:
		case <-look.C:
		}
	}
}

// learn asks the others which layout is the present one.
func (b *Bus) learn() {
	for n, a := range b.askAll(b.ctx, b.others(), question{Op: "layout"}, askWait) {
		if err := b.adopt(a.Layout); err != nil {
			b.cfg.Logger.Error("bus: the layout that another node follows cannot be taken over", "node", n, "err", err)
		}
	}
}
