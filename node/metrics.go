package node

import (
	"context"
	"errors"
	"time"
)

// gauges adds what only the whole node knows to /metrics.
func (n *Node) gauges() error {
	g, c := n.telemetry.Gauge, n.telemetry.Counter
	return errors.Join(
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

func (n *Node) queued() (sum float64) {
	for _, l := range n.invoke.Loads() {
		sum += float64(l.Queued)
	}
	return sum
}

// keepJobs is how long jobs that have ended are remembered.
const keepJobs = 7 * 24 * time.Hour

// sweep forgets old jobs and artifacts, when this node becomes the keeper and
// once an hour.
func (n *Node) sweep(ctx context.Context) {
	t := time.NewTicker(time.Hour)
	defer t.Stop()
	for {
		now := time.Now()
		if _, own := n.seat.who(); own != nil {
			if _, err := own.Prune(ctx, now.Add(-keepJobs)); err != nil && ctx.Err() == nil {
				n.cfg.Logger.Warn("old jobs are not forgotten", "err", err)
			}
		}
		if _, err := n.collectArtifacts(ctx, now.Add(-keepArtifacts)); err != nil && ctx.Err() == nil {
			n.cfg.Logger.Warn("old artifacts are not deleted", "err", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
