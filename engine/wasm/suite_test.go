package wasm_test

import (
	"testing"

	"go.uber.org/goleak"

	"lode/engine"
	"lode/engine/enginetest"
	"lode/engine/wasm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newDriver(t testing.TB) engine.Driver {
	d, err := wasm.New(wasm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDriver(t *testing.T) { enginetest.Run(t, newDriver) }
