package wasm_test

import (
	"context"
	"sync"
	"testing"

	"lode"
	"lode/engine"
	"lode/engine/enginetest"
)

// TestManyPrograms loads, calls and closes programs of shared and of own code
// from many goroutines.
func TestManyPrograms(t *testing.T) {
	d := newDriver(t)
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	guest := enginetest.C(t, "probe")
	code := enginetest.Code(t, d, guest)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5 {
				bundle := string(rune('a' + i%3))
				p, err := d.Load(context.Background(), enginetest.WithInit(guest, bundle), code, engine.Config{Revision: "test/x@1", Contract: lode.ContractHandler, Limits: enginetest.Limits()})
				if err != nil {
					t.Error(err)
					return
				}
				sb, err := p.Sandbox(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				p.Close() // the sandbox keeps it
				inv := &engine.Invocation{Body: []byte("kept"), Out: &enginetest.Answer{}}
				if err := sb.Invoke(context.Background(), inv); err != nil || string(inv.Reply.Body) != bundle || !sb.Reset() {
					t.Errorf("%q, %v", inv.Reply.Body, err)
				}
				sb.Close()
			}
		})
	}
	wg.Wait()
}
