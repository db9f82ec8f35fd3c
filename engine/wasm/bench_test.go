package wasm_test

import (
	"context"
	"testing"

	"lode"
	"lode/engine"
	"lode/engine/enginetest"
)

// program compiles and loads guest.
func program(b *testing.B, guest []byte) engine.Program {
	b.Helper()
	d := newDriver(b)
	b.Cleanup(func() { d.Close() })
	p, err := d.Load(context.Background(), guest, enginetest.Code(b, d, guest), engine.Config{Revision: "test/bench@1", Contract: lode.ContractHandler, Limits: enginetest.Limits()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// BenchmarkInvoke is one invocation by a pool, answer included. Reset is the
// share of making the sandbox clean.
func BenchmarkInvoke(b *testing.B) {
	for _, g := range []struct {
		name, body string
		wasm       []byte
	}{{"c", "hello", enginetest.C(b, "echo")}, {"go", "count", enginetest.Go(b, "probe")}, {"go-json", "json", enginetest.Go(b, "probe")}} {
		b.Run(g.name, func(b *testing.B) {
			p := enginetest.Pool(b, newDriver(b), g.wasm, engine.Config{})
			inv := &engine.Invocation{Body: []byte(g.body), Host: &enginetest.Host{}}
			a := &enginetest.Answer{}
			inv.Out = a
			if err := p.Invoke(context.Background(), inv); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				a.Body = a.Body[:0]
				if err := p.Invoke(context.Background(), inv); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(g.name+"/reset", func(b *testing.B) {
			sb, err := program(b, g.wasm).Sandbox(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			defer sb.Close()
			inv := &engine.Invocation{Body: []byte(g.body), Host: &enginetest.Host{}, Out: &enginetest.Answer{}}
			for b.Loop() {
				b.StopTimer()
				inv.Reply.Body = inv.Reply.Body[:0]
				if err := sb.Invoke(context.Background(), inv); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if !sb.Reset() {
					b.Fatal("not clean")
				}
			}
		})
	}
}

// BenchmarkCold makes sandboxes from the snapshot, and programs from code.
func BenchmarkCold(b *testing.B) {
	for name, guest := range map[string][]byte{"c": enginetest.C(b, "echo"), "go": enginetest.Go(b, "probe")} {
		b.Run(name+"/sandbox", func(b *testing.B) {
			p := program(b, guest)
			for b.Loop() {
				sb, err := p.Sandbox(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				sb.Close()
			}
		})
		b.Run(name+"/load", func(b *testing.B) {
			d := newDriver(b)
			defer d.Close()
			code := enginetest.Code(b, d, guest)
			for b.Loop() {
				p, err := d.Load(context.Background(), guest, code, engine.Config{Contract: lode.ContractHandler, Limits: enginetest.Limits()})
				if err != nil {
					b.Fatal(err)
				}
				sb, err := p.Sandbox(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				sb.Close()
				p.Close()
			}
		})
	}
}
