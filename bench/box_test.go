package bench

import (
	"context"
	"os"
	"testing"

	"lode"
	"lode/engine"
)

func BenchmarkBox(b *testing.B) {
	for _, g := range []string{"hash-c", "hash-go", "hash-js"} {
		b.Run(g, func(b *testing.B) {
			r := &runner{dir: b.TempDir()}
			a, err := r.guest(context.Background(), g)
			if err != nil {
				b.Fatal(err)
			}
			box, err := openBox(context.Background(), a.Wasm)
			if err != nil {
				b.Fatal(err)
			}
			defer box.close()
			head := engine.EncodeHead(nil, []lode.Pair{{Key: ":kind", Value: "http"}, {Key: ":method", Value: "POST"}, {Key: ":path", Value: "/"}, {Key: ":handler", Value: ""}, {Key: "content-length", Value: "1024"},
				{Key: ":deadline", Value: "99999999999999"}})
			inv := &engine.Invocation{}
			body := body1K()
			resets := 0
			for b.Loop() {
				*inv = engine.Invocation{ID: "bench", Head: head, Body: body, Out: drop{}, Host: noHost{}}
				if err := box.sb.Invoke(context.Background(), inv); err != nil {
					b.Fatal(err)
				}
				if os.Getenv("NORESET") == "" && !box.sb.Reset() {
					resets++
					box.sb.Close()
					if box.sb, err = box.prog.Sandbox(context.Background()); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(resets)/float64(b.N), "retired/op")
		})
	}
}
