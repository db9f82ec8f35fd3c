package invoke

import (
	"context"
	"testing"

	"lode"
)

// Where an invocation runs: alone, on its own node of a cluster, on another.
func BenchmarkSpread(b *testing.B) {
	f := newFleet(b, Config{}, "a", "b")
	f.deploy("echo", lode.Function{}, func(*tnode) code { return echo })
	w := newWorld()
	w.deploy("echo", lode.Function{}, echo)
	alone := w.service(b, Config{})
	for _, bb := range []struct {
		name string
		s    *Service
		away bool
	}{{"alone", alone, false}, {"here", f.nodes["a"].s, false}, {"there", f.nodes["a"].s, true}} {
		b.Run(bb.name, func(b *testing.B) {
			bb.s.SetDraining(bb.away)
			req, ans := request("echo"), &lode.Buffered{}
			b.ReportAllocs()
			for b.Loop() {
				ans.Msg.Body = ans.Msg.Body[:0]
				if _, err := bb.s.Invoke(context.Background(), req, ans); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
