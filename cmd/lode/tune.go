package main

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// tune fits Go's scheduler and collector to a process that is a node, where
// the environment does not say otherwise, until stop is called.
func tune(ctx context.Context) (stop func()) {
	if os.Getenv("GOMAXPROCS") == "" {
		// One more than there are cores: guests that compute for long are let
		// onto each core, and one is left for the doors and for short guests.
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		keepCollecting(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// A node's own heap is small and its garbage is that of requests: collected as
// soon as there is as much of it as of the heap, it would be collected many
// times a second.
const (
	leastGarbage = 32 << 20 // bytes, before it is collected
	mostPercent  = 800      // of the heap
)

// percent is GOGC for a heap of live bytes.
func percent(live uint64) int {
	return int(max(100, min(mostPercent, leastGarbage*100/max(live, 1))))
}

// keepCollecting sets GOGC as the heap grows and shrinks.
func keepCollecting(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for set := 100; ; {
		metrics.Read(live)
		// Setting it stops the world: not for little.
		if p := percent(live[0].Value.Uint64()); math.Abs(float64(p-set)) > float64(set)/4 || p == 100 && set != 100 {
			debug.SetGCPercent(p)
			set = p
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
