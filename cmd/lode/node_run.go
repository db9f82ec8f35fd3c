package main

import (
	"context"
	"io"

	"lode"
)

// What stands behind the commands that run things in this process. This file
// alone knows packages node and bench.

func openNode(context.Context, nodeOptions) (localNode, error) {
	return nil, lode.Errorf(lode.Unavailable, "this build of the command holds no node")
}

func runWorker(context.Context, []string, io.Reader, io.Writer) error {
	return lode.Errorf(lode.Unavailable, "this build of the command holds no node")
}

func benches() (names, helps []string) { return nil, nil }

func runBench(context.Context, string, benchOptions) (report, error) {
	return nil, lode.Errorf(lode.Unavailable, "this build of the command holds no benches")
}

func benchChild(context.Context, string, []string, io.Writer) error {
	return lode.Errorf(lode.Unavailable, "this build of the command holds no benches")
}

func runDemo(context.Context, io.Writer) (report, error) {
	return nil, lode.Errorf(lode.Unavailable, "this build of the command holds no demo")
}
