package main

import (
	"context"
	"io"

	"lode"
)

// What stands behind lode bench and lode demo. This file alone knows package
// bench.

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
