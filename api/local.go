package api

import (
	"context"

	"lode"
)

// A node asks others in the same words as people do, through the same server:
// each answers for itself alone, or the question would go round for ever. The
// asking node's Client sends "Lode-Local: 1" (Config.Local); the answering
// node's server believes it only on a connection whose other end is known to
// be a node of the cluster (WithPeer).

const localHeader = "Lode-Local"

type (
	peerKey  struct{}
	localKey struct{}
	allKey   struct{}
)

// WithPeer says that the request of ctx came from a node of the cluster, whose
// certificate was checked. Whoever calls it answers for that. Lode-Local is
// honoured from then on; what the peer may do is said with WithGrant.
func WithPeer(ctx context.Context, node lode.NodeID) context.Context {
	return context.WithValue(ctx, peerKey{}, node)
}

// PeerOf is the node that asks, if a node does.
func PeerOf(ctx context.Context) (lode.NodeID, bool) {
	n, ok := ctx.Value(peerKey{}).(lode.NodeID)
	return n, ok
}

func withLocal(ctx context.Context) context.Context {
	return context.WithValue(ctx, localKey{}, true)
}

// IsLocal reports whether this node is to answer for itself alone.
func IsLocal(ctx context.Context) bool {
	v, _ := ctx.Value(localKey{}).(bool)
	return v
}

// WithAllNodes asks a Cluster whose Doctor is of one node for the checks of
// all: doctor?cluster=1.
func WithAllNodes(ctx context.Context) context.Context {
	return context.WithValue(ctx, allKey{}, true)
}

// OfAllNodes reports whether all nodes are asked for; never with IsLocal.
func OfAllNodes(ctx context.Context) bool {
	v, _ := ctx.Value(allKey{}).(bool)
	return v && !IsLocal(ctx)
}
