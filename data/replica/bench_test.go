package replica_test

import (
	"testing"
	"time"

	"lode/data/replica"
	"lode/store"
	"lode/store/storetest"
)

// BenchmarkTransfer is a shard to another node and back, verified on both
// sides and durable on the other, over one connection without TLS.
func BenchmarkTransfer(b *testing.B) {
	for name, run := range map[string]func(b *testing.B, n *storetest.Node, r store.Remote, content []byte){
		"put": func(b *testing.B, n *storetest.Node, r store.Remote, content []byte) {
			d := storetest.Digest(content)
			for b.Loop() {
				if _, err := r.Put(b.Context(), d, section(content), store.PutAs{Modified: time.Now()}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				r.Delete(b.Context(), d, time.Time{})
				b.StartTimer()
			}
		},
		"get": func(b *testing.B, n *storetest.Node, r store.Remote, content []byte) {
			d := storetest.Digest(content)
			if _, err := r.Put(b.Context(), d, section(content), store.PutAs{Modified: time.Now()}); err != nil {
				b.Fatal(err)
			}
			w := &counted{}
			for b.Loop() {
				if err := r.Get(b.Context(), d, w); err != nil {
					b.Fatal(err)
				}
			}
			if w.n != int64(b.N)*int64(len(content)) {
				b.Errorf("%d bytes of %d", w.n, int64(b.N)*int64(len(content)))
			}
		},
		"fetch": func(b *testing.B, n *storetest.Node, r store.Remote, content []byte) {
			d := storetest.Digest(content)
			if _, err := r.Put(b.Context(), d, section(content), store.PutAs{Modified: time.Now()}); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				got, err := n.Replicas.Get(b.Context(), d)
				if err != nil {
					b.Fatal(err)
				}
				got.Close()
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			w := newTown(b, 2)
			content := storetest.Bytes(64<<20, 1)
			b.SetBytes(int64(len(content)))
			run(b, w.Nodes()[0], replica.Remote(w.link("n1"), "shards", "n2"), content)
		})
	}
}

type counted struct{ n int64 }

func (c *counted) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }
