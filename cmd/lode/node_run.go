package main

import (
	"context"
	"io"
	"net/url"
	"os"
	"strings"

	"lode"
	"lode/node"
)

// What stands behind lode up, dev and worker. This file alone knows package
// node.

var _ localNode = (*node.Node)(nil)

// openNode starts a node in this process. Its jobs run in processes of this
// same program.
func openNode(ctx context.Context, o nodeOptions) (localNode, error) {
	c := node.Config{
		Dir: o.dir, Listen: o.listen, Peers: o.peers, Routes: o.bus, Hosts: o.hosts, Name: o.name, Zone: o.zone, Labels: o.labels, GatewayOnly: o.gatewayOnly,
		Logger: o.log, CodeBudget: o.code, Idle: o.warm, RepairAfter: o.repair,
		OTLP:    os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"),
		Version: productVersion(), Commit: commit(),
	}
	if c.Peers == "" { // a throw-away node: nobody is told where
		c.Peers, c.Routes = "127.0.0.1:0", "127.0.0.1:0"
	}
	if o.join != nil {
		c.Join = o.join.resolve
	}
	if o.nats != nil {
		c.NATS = &node.NATS{URL: o.nats.url, Creds: o.nats.creds}
	}
	if self, err := os.Executable(); err == nil {
		c.Worker = []string{self, "worker"}
	}
	var err error
	if c.Bucket, err = bucket(o.bucket); err != nil {
		return nil, err
	}
	n, err := node.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// bucket reads s3://BUCKET[/PREFIX][?endpoint=URL&region=R].
func bucket(s string) (*node.Bucket, error) {
	if s == "" {
		return nil, nil
	}
	place, query, _ := strings.Cut(s, "?")
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "--bucket %s: %w", s, err)
	}
	return &node.Bucket{Place: place, Endpoint: q.Get("endpoint"), Region: q.Get("region")}, nil
}

// runWorker runs jobs for a node, in a process of their own.
func runWorker(ctx context.Context, _ []string, in io.Reader, out io.Writer) error {
	return node.Work(ctx, in, out)
}
