package main

import (
	"context"
	"io"

	"lode/bench"
)

// What stands behind lode bench and lode demo. This file alone knows package
// bench.

var (
	_ report = (*bench.Report)(nil)
	_ report = (*bench.DemoReport)(nil)
)

func benches() (names, helps []string) {
	for _, b := range bench.List() {
		names, helps = append(names, b.Name), append(helps, b.Help)
	}
	return names, helps
}

func runBench(ctx context.Context, name string, o benchOptions) (report, error) {
	r, err := bench.Run(ctx, name, bench.Options{Rounds: o.rounds, Each: o.each, Log: o.log})
	if err != nil {
		return nil, err
	}
	return r, nil
}

func benchChild(ctx context.Context, role string, args []string, out io.Writer) error {
	return bench.Child(ctx, role, args, out)
}

func runDemo(ctx context.Context, log io.Writer) (report, error) {
	r, err := bench.Demo(ctx, bench.Options{Log: log})
	if err != nil {
		return nil, err
	}
	return r, nil
}
