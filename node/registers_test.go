package node

import (
	"testing"

	"lode/bus"
	"lode/data"
	"lode/data/registerstest"
)

// TestRegisters holds data's pointers over the bus to what data expects.
func TestRegisters(t *testing.T) {
	registerstest.Registers(t, func(t *testing.T) data.Registers {
		b, err := bus.Open(t.Context(), bus.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		table, err := b.Table(t.Context(), "registers")
		if err != nil {
			t.Fatal(err)
		}
		return registers{table}
	})
}
