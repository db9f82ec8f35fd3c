package link

import (
	"sync"
	"testing"
)

// BenchmarkCall is a 1 KB call, there and back, within one process.
func BenchmarkCall(b *testing.B) {
	for name, callers := range map[string]int{"1": 1, "64": 64} {
		b.Run(name, func(b *testing.B) {
			w := newTown(b, false)
			x, y := w.add("x", Config{}), w.add("y", Config{Handle: map[string]Handler{"echo": echo}})
			connect(b, x, y)
			body := make([]byte, 1024)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for i := range callers {
				n := b.N / callers
				if i == 0 {
					n = b.N - n*(callers-1)
				}
				wg.Go(func() {
					for range n {
						var got Bytes
						if err := x.Call(b.Context(), "y", &Request{Method: "echo", Body: body}, &got); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
