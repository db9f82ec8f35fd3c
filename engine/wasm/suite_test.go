package wasm_test

import (
	"testing"

	"lode/engine"
	"lode/engine/enginetest"
	"lode/engine/wasm"
)

func newDriver(t testing.TB) *wasm.Driver {
	d, err := wasm.New(wasm.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFirst(t *testing.T) {
	p := enginetest.Pool(t, newDriver(t), enginetest.C(t, "echo"), engine.Config{})
	for range 3 {
		got, inv, err := enginetest.Call(p, "hello")
		t.Logf("%q %+v %v", got, inv.Usage, err)
		if err != nil || got != "HELLO" {
			t.Fatal(got, err)
		}
	}
	t.Logf("%+v", p.Stats())
}
