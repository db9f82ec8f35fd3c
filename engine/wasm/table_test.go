package wasm

import (
	"context"
	"testing"

	"lode"
	"lode/engine"
	"lode/engine/enginetest"
	"lode/engine/rewrite"
)

// TestTables: the tables of later instances, which are copied, refer to the
// same functions as those that the engine has filled, and to their own.
func TestTables(t *testing.T) {
	for name, guest := range map[string][]byte{"c": enginetest.C(t, "probe"), "go": enginetest.Go(t, "probe")} {
		t.Run(name, func(t *testing.T) {
			d, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			p, err := d.load(context.Background(), guest, enginetest.Code(t, d, guest), engine.Config{Contract: lode.ContractHandler, Limits: enginetest.Limits()})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			first, err := p.instance(nil)
			if err != nil {
				t.Fatal(err)
			}
			defer first.free()
			second, err := p.instance(nil)
			if err != nil {
				t.Fatal(err)
			}
			defer second.free()
			if p.s.tables == nil || len(second.refs) == 0 {
				t.Fatal("the tables are left to the engine: its types have changed")
			}
			want, got := learnTables(&p.s.code.head, first.mod), learnTables(&p.s.code.head, second.mod)
			if want == nil || got == nil || len(got.funcs) != len(want.funcs) {
				t.Fatalf("%v, %v", got == nil, want == nil)
			}
			for i := range want.funcs {
				if got.funcs[i] != want.funcs[i] || got.spots[i] != want.spots[i] {
					t.Fatalf("element %+v is %+v, want %+v at %+v", got.spots[i], got.funcs[i], want.funcs[i], want.spots[i])
				}
			}
			if learnTables(&codeHead{MayDirty: rewrite.DirtyTable}, first.mod) != nil {
				t.Error("tables that the guest may change were learned")
			}
		})
	}
}
