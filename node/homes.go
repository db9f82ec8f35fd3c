package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"lode"
	"lode/agent"
	"lode/data/job"
	"lode/data/replica"
	"lode/invoke"
	"lode/link"
	"lode/store"
)

// The stores of a node, as the others name them.
const (
	artifactStore = "artifacts"
	shardStore    = "shards"
	agentStore    = "agents"
)

// Artifacts are needed wherever a function may run, so they are kept on one
// node more than shards are.
const artifactCopies = 3

// openStores opens the two stores: artifacts, whose home is always the nodes,
// and shards, whose home is the nodes or a bucket.
func (n *Node) openStores(ctx context.Context) (err error) {
	if n.artifacts, err = n.openReplicas(artifactStore, "blobs", artifactCopies); err != nil {
		return err
	}
	if n.snapshots, err = n.openReplicas(agentStore, "snapshots", store.DefaultCopies); err != nil {
		return err
	}
	if n.cfg.Bucket == nil {
		n.shards, err = n.openReplicas(shardStore, "data", store.DefaultCopies)
		return err
	}
	home, err := openBucket(ctx, n.cfg.Bucket)
	if err != nil {
		return err
	}
	n.shards, err = store.Open(store.Config{Home: home, Cache: n.dir.file("cache", shardStore), Log: n.cfg.Logger,
		Peers: &store.Peers{Self: n.fleet.id, Nodes: n.fleet.states, Remote: n.remoteStore(shardStore)}})
	if err == nil {
		n.opened("shards", plain(n.shards.Close))
	}
	return err
}

// openReplicas opens a store whose blobs are on the nodes, this one's in a
// folder.
func (n *Node) openReplicas(name, folder string, copies int) (*store.Store, error) {
	local, err := store.OpenDir(n.dir.file(folder))
	if err != nil {
		return nil, err
	}
	r, err := store.OpenReplicas(store.ReplicasConfig{Self: n.fleet.id, Local: local, Nodes: n.fleet.states, Remote: n.remoteStore(name), Copies: copies, Logger: n.cfg.Logger})
	if err != nil {
		return nil, err
	}
	s, err := store.Open(store.Config{Home: r, Cache: n.dir.file("cache", name), Log: n.cfg.Logger})
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	n.replicas[name] = r
	n.opened(name, plain(s.Close))
	return s, nil
}

// remoteStore gives the side of another node of one store.
func (n *Node) remoteStore(name string) func(lode.NodeID) store.Remote {
	return func(to lode.NodeID) store.Remote { return replica.Remote(n.fleet.link, name, to) }
}

// openBucket opens a bucket as where datasets are durable.
func openBucket(ctx context.Context, b *Bucket) (store.Home, error) {
	c, err := store.ParseS3(b.Place)
	if err != nil {
		return nil, err
	}
	c.Endpoint, c.Region = b.Endpoint, b.Region
	return store.OpenS3(ctx, c)
}

// startWait is how long a call of another node waits for this one to be open.
const startWait = 2 * time.Second

// handlers answer the other nodes. What needs a room waits a while until it is
// open, so that a node that starts is no failure for those who know it already.
func (n *Node) handlers() map[string]link.Handler {
	blobs := sync.OnceValue(func() map[string]link.Handler {
		return replica.Serve(map[string]*store.Shelf{artifactStore: n.artifacts.Shelf(), shardStore: n.shards.Shelf(), agentStore: n.snapshots.Shelf()})
	})
	work := sync.OnceValue(func() link.Handler { return job.ServeWork(n.executor) })
	h := map[string]link.Handler{
		"bus": n.late(n.busOpen, func(ctx context.Context, in *link.Incoming) error {
			answer, err := n.bus.Handle(ctx, in.From, in.Body)
			if err != nil {
				return err
			}
			return in.Reply(nil, answer)
		}),
		// Who asks for these two goes elsewhere at once.
		invoke.LinkMethod: func(ctx context.Context, in *link.Incoming) error {
			if !n.isOpen() {
				return (*invoke.Service)(nil).HandleRemote(ctx, in)
			}
			return n.invoke.HandleRemote(ctx, in)
		},
		invoke.KeeperMethod: func(ctx context.Context, in *link.Incoming) error {
			if !n.isOpen() {
				return (*invoke.Keeper)(nil).HandleRemote(ctx, in)
			}
			return n.seat.serve(ctx, in)
		},
		invoke.TalkMethod: n.late(n.open, func(ctx context.Context, in *link.Incoming) error { return n.invoke.HandleTalk(ctx, in) }),
		agent.LinkMethod:  n.late(n.agentsOpen, func(ctx context.Context, in *link.Incoming) error { return n.agents.HandleRemote(ctx, in) }),
		framesMethod:      n.late(n.open, n.serveFrames),
		costsMethod:       n.late(n.agentsOpen, n.serveCosts),
		moveMethod:        n.late(n.agentsOpen, n.serveMove),
		job.MethodWork:    n.late(n.open, func(ctx context.Context, in *link.Incoming) error { return work()(ctx, in) }),
		"http":            n.late(n.open, n.serveFar),
	}
	for _, m := range replica.Methods() {
		h[m] = n.late(n.open, func(ctx context.Context, in *link.Incoming) error { return blobs()[m](ctx, in) })
	}
	return h
}

// isOpen reports whether every room of this node is there.
func (n *Node) isOpen() bool {
	select {
	case <-n.open:
		return true
	default:
		return false
	}
}

// late answers once the channel is closed.
func (n *Node) late(open <-chan struct{}, h link.Handler) link.Handler {
	return func(ctx context.Context, in *link.Incoming) error {
		select {
		case <-open:
			return h(ctx, in)
		case <-time.After(startWait):
		case <-ctx.Done():
		}
		e := lode.Errorf(lode.Unavailable, "node %s is starting", n.fleet.id)
		e.RetryAfter = time.Second
		return e
	}
}

// beat is what heartbeats carry.
func (n *Node) beat() []byte {
	if !n.isOpen() {
		return nil
	}
	return n.invoke.LoadReport()
}
