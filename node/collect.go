package node

import (
	"context"
	"time"

	"lode"
	"lode/bus"
)

// keepArtifacts is how long bytes that no revision names are kept: an upload
// comes before the deploy that names it.
const keepArtifacts = 24 * time.Hour

// collectArtifacts deletes modules that no kept revision names, and the native
// code that was compiled for them. Code that another artifact shares is
// compiled again when that one is loaded.
func (n *Node) collectArtifacts(ctx context.Context, before time.Time) (blobs int, err error) {
	named, err := n.catalog.Digests(ctx)
	if err != nil {
		return 0, err
	}
	codes, err := n.pools.code.List(ctx, "")
	if err != nil {
		return 0, err
	}
	for _, e := range codes {
		code, artifact, err := parseCode(e.Value)
		if err == nil && named[artifact] {
			named[code] = true
			continue
		}
		if err := n.dropCode(ctx, e, code, before); err != nil {
			return blobs, err
		}
	}
	for info, err := range n.artifacts.List(ctx) {
		if err != nil {
			return blobs, err
		}
		if named[info.Digest] || !info.Modified.Before(before) {
			continue
		}
		gone, err := n.artifacts.Collect(ctx, info.Digest, before)
		if err != nil {
			return blobs, err
		}
		if gone {
			blobs++
		}
	}
	return blobs, nil
}

// collectSnapshots deletes blobs of agents that no journal needs. Where it is
// not known what all of them need, nothing is deleted.
func (n *Node) collectSnapshots(ctx context.Context, before time.Time) (blobs int, err error) {
	named, err := n.agents.Named(ctx)
	if err != nil {
		return 0, err
	}
	for info, err := range n.snapshots.List(ctx) {
		if err != nil {
			return blobs, err
		}
		if named[info.Digest] || !info.Modified.Before(before) {
			continue
		}
		gone, err := n.snapshots.Collect(ctx, info.Digest, before)
		if err != nil {
			return blobs, err
		}
		if gone {
			blobs++
		}
	}
	return blobs, nil
}

// dropCode forgets native code that is old and compiled for nobody.
func (n *Node) dropCode(ctx context.Context, e bus.Entry, code lode.Digest, before time.Time) error {
	info, err := n.artifacts.Stat(ctx, code)
	if err == nil && !info.Modified.Before(before) {
		return nil
	}
	err = n.pools.code.Delete(ctx, e.Key, e.Rev)
	if lode.KindOf(err) == lode.Precondition { // it was just compiled again
		return nil
	}
	return err
}
