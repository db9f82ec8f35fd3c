package node

import (
	"context"
	"errors"
	"time"

	"lode/invoke"
	"lode/link"
)

// gauges adds what only the whole node knows to /metrics.
func (n *Node) gauges() error {
	g, c := n.telemetry.Gauge, n.telemetry.Counter
	return errors.Join(n.clusterGauges(), errors.Join(n.agentGauges()...),
		g("lode_sandboxes_warm", "Sandboxes that wait for an invocation.", func() float64 { return float64(n.engine.Stats().Warm) }),
		g("lode_sandboxes_busy", "Sandboxes that run an invocation.", func() float64 { return float64(n.engine.Stats().Busy) }),
		g("lode_sandbox_memory_bytes", "Memory of the warm sandboxes.", func() float64 { return float64(n.engine.Stats().Memory) }),
		g("lode_programs_loaded", "Programs with their code in memory.", func() float64 { return float64(n.engine.Stats().Loaded) }),
		g("lode_programs_bytes", "Code and images in memory.", func() float64 { return float64(n.engine.Stats().Bytes) }),
		c("lode_sandboxes_made_total", "Sandboxes made.", func() float64 { return float64(n.engine.Stats().Cold) }),
		c("lode_sandboxes_retired_total", "Sandboxes closed because they could not be made clean.", func() float64 { return float64(n.engine.Stats().Retired) }),
		g("lode_bus_bytes", "Bytes that the bus has on disk.", func() float64 { return float64(n.bus.Stats().Bytes) }),
		g("lode_shards_cached_bytes", "Bytes of datasets in the cache of a bucket.", func() float64 { return float64(n.shards.Stats().Cached) }),
		c("lode_shards_fetched_bytes_total", "Bytes of datasets fetched from their home.", func() float64 { return float64(n.shards.Stats().Fetched) }),
		g("lode_queued", "Invocations that wait for admission.", n.queued),
		g("lode_memory_bytes", "Resident memory of the node's process.", func() float64 { return float64(residentBytes()) }),
		g("lode_start_time_seconds", "When the node started, in Unix seconds.", func() float64 { return float64(n.started.UnixMilli()) / 1e3 }),
	)
}

// clusterGauges are what this node knows of the others, and of its part among
// them.
func (n *Node) clusterGauges() error {
	g, c := n.telemetry.Gauge, n.telemetry.Counter
	spread := func(f func(invoke.SpreadStats) int64) func() float64 {
		return func() float64 { return float64(f(n.invoke.SpreadStats())) }
	}
	links := func(f func(link.Peer) float64) func() float64 {
		return func() (sum float64) {
			for _, p := range n.fleet.link.Peers() {
				sum += f(p)
			}
			return sum
		}
	}
	return errors.Join(
		g("lode_nodes", "Nodes of the cluster, this one among them.", func() float64 { return float64(len(n.fleet.members.List())) }),
		g("lode_nodes_lost", "Nodes that this one does not hear of.", n.lostNodes),
		g("lode_keeper", "1 on the node that keeps asynchronous work, 0 on the others.", n.keeps),
		g("lode_bus_members", "Nodes that keep the bus.", func() float64 { return float64(len(n.bus.Layout().Members)) }),
		g("lode_bus_members_answering", "Members of the bus that answer.", func() float64 { return float64(n.clusterState().Answering) }),
		g("lode_bus_generation", "Changes of the bus's members, plus 1.", func() float64 { return float64(n.bus.Layout().Generation) }),
		c("lode_link_received_bytes_total", "Bytes from other nodes.", links(func(p link.Peer) float64 { return float64(p.BytesIn) })),
		c("lode_link_sent_bytes_total", "Bytes to other nodes.", links(func(p link.Peer) float64 { return float64(p.BytesOut) })),
		c("lode_peer_port_refused_total", "Connections that the peer port refused.", n.refusedPeers),
		c("lode_forwarded_total", "Invocations that came in here and ran on another node.", spread(func(s invoke.SpreadStats) int64 { return s.Forwarded })),
		c("lode_forward_served_total", "Invocations of other nodes that ran here.", spread(func(s invoke.SpreadStats) int64 { return s.Served })),
		c("lode_forward_refused_total", "Times that another node said no to an invocation.", spread(func(s invoke.SpreadStats) int64 { return s.Refused })),
		c("lode_forward_parked_total", "Times that an invocation waited here since no node took it.", spread(func(s invoke.SpreadStats) int64 { return s.Parked })),
		c("lode_forward_retried_total", "Invocations that were sent on since their node was lost.", spread(func(s invoke.SpreadStats) int64 { return s.Retried })),
		c("lode_forward_lost_total", "Invocations that failed since their node was lost and they may have run.", spread(func(s invoke.SpreadStats) int64 { return s.Lost })),
		c("lode_shards_from_nodes_bytes_total", "Bytes of datasets fetched from other nodes.", func() float64 { return float64(n.shards.Stats().FromPeers) }),
		c("lode_shards_to_nodes_bytes_total", "Bytes of datasets given to other nodes.", func() float64 { return float64(n.shards.Stats().ToPeers) }),
	)
}

func (n *Node) lostNodes() (lost float64) {
	for _, s := range n.fleet.states() {
		if !s.Alive {
			lost++
		}
	}
	return lost
}

func (n *Node) keeps() float64 {
	if _, own := n.seat.who(); own != nil {
		return 1
	}
	return 0
}

func (n *Node) refusedPeers() (sum float64) {
	for _, v := range n.fleet.port.Refused() {
		sum += float64(v)
	}
	return sum
}

func (n *Node) queued() (sum float64) {
	for _, l := range n.invoke.Loads() {
		sum += float64(l.Queued)
	}
	return sum
}

// keepJobs is how long jobs that have ended are remembered.
const keepJobs = 7 * 24 * time.Hour

// sweepAgents is how many hours lie between two looks for blobs of agents that
// nobody needs: each reads all journals.
const sweepAgents = 6

// sweep forgets old jobs and artifacts, when this node becomes the keeper and
// once an hour, and more rarely old snapshots of agents.
func (n *Node) sweep(ctx context.Context) {
	t := time.NewTicker(time.Hour)
	defer t.Stop()
	for hour := 0; ; hour++ {
		now := time.Now()
		if _, own := n.seat.who(); own != nil {
			if _, err := own.Prune(ctx, now.Add(-keepJobs)); err != nil && ctx.Err() == nil {
				n.cfg.Logger.Warn("old jobs are not forgotten", "err", err)
			}
		}
		if _, err := n.collectArtifacts(ctx, now.Add(-keepArtifacts)); err != nil && ctx.Err() == nil {
			n.cfg.Logger.Warn("old artifacts are not deleted", "err", err)
		}
		if hour%sweepAgents == 1 {
			if _, err := n.collectSnapshots(ctx, now.Add(-keepArtifacts)); err != nil && ctx.Err() == nil {
				n.cfg.Logger.Warn("old snapshots of agents are not deleted", "err", err)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
