package main

import (
	"context"
	"io"
	"os"

	"lode"
	"lode/node"
)

// What stands behind lode up, dev and worker. This file alone knows package
// node.

var _ localNode = (*node.Node)(nil)

// openNode starts a node in this process.
func openNode(ctx context.Context, o nodeOptions) (localNode, error) {
	if o.bucket != "" {
		return nil, lode.Errorf(lode.Unavailable, "this version of the command cannot set a bucket yet").WithHint("leave --bucket out: datasets are kept in the data folder")
	}
	n, err := node.Open(ctx, node.Config{
		Dir: o.dir, Listen: o.listen, Name: o.name, Logger: o.log, CodeBudget: o.code, Idle: o.warm,
		OTLP:    os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"),
		Version: productVersion(), Commit: commit(),
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// runWorker runs jobs for a node, in a process of their own.
func runWorker(context.Context, []string, io.Reader, io.Writer) error {
	return lode.Errorf(lode.Unavailable, "this version runs jobs in the node's own process")
}
