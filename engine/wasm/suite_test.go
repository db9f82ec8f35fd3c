package wasm_test

import (
	"testing"

	"lode/engine"
	"lode/engine/enginetest"
	"lode/engine/wasm"
)

func newDriver(t testing.TB) engine.Driver {
	d, err := wasm.New(wasm.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDriver(t *testing.T) { enginetest.Run(t, newDriver) }
