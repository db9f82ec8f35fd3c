package node

import (
	"slices"
	"strings"
	"testing"

	"lode"
	"lode/engine"
)

func TestKindOf(t *testing.T) {
	cart := lode.KindExp{Name: "Cart", Methods: []string{"total", "add", "peek"}, Read: []string{"total"}}
	room := lode.KindExp{Name: "Room"}
	for _, tt := range []struct {
		name  string
		spec  lode.AgentSpec
		kinds []lode.KindExp
		class string
		read  string
		fails string
		hint  string
	}{
		{"named", lode.AgentSpec{Class: "Cart"}, []lode.KindExp{room, cart}, "Cart", "total", "", ""},
		{"the only one", lode.AgentSpec{}, []lode.KindExp{cart}, "Cart", "total", "", ""},
		{"marked in the file", lode.AgentSpec{Read: []string{"peek", "total"}}, []lode.KindExp{cart}, "Cart", "peek total", "", ""},
		{"several", lode.AgentSpec{}, []lode.KindExp{cart, room}, "", "", "several classes", "Cart, Room"},
		{"none", lode.AgentSpec{}, nil, "", "", "no kinds of agents", "SDK"},
		{"mistyped", lode.AgentSpec{Class: "Crat"}, []lode.KindExp{cart, room}, "", "", `no class "Crat"`, `"Cart"`},
		{"no such method", lode.AgentSpec{Read: []string{"peak"}}, []lode.KindExp{cart}, "", "", `no method "peak"`, `"peek"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := lode.Function{Agent: &tt.spec}
			err := kindOf("cart", &f, &engine.Info{Contract: lode.ContractHandler, Description: &lode.Description{Kinds: tt.kinds}})
			if tt.fails != "" {
				if lode.KindOf(err) != lode.Invalid || !strings.Contains(err.Error(), tt.fails) || !strings.Contains(lode.AsError(err).Hint, tt.hint) {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil || f.Agent.Class != tt.class || strings.Join(f.Agent.Read, " ") != tt.read || !slices.Equal(f.Agent.Methods, []string{"add", "peek", "total"}) {
				t.Fatalf("%+v, %v", f.Agent, err)
			}
		})
	}
	f := lode.Function{Agent: &lode.AgentSpec{}}
	if err := kindOf("cart", &f, &engine.Info{Contract: lode.ContractHandler}); err != nil || f.Agent.Methods != nil {
		t.Errorf("code that says nothing: %v", err)
	}
	if err := kindOf("cart", &f, &engine.Info{Contract: lode.ContractCommand}); lode.KindOf(err) != lode.Invalid {
		t.Errorf("a command: %v", err)
	}
}
