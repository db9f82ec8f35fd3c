package spec

import (
	"slices"
	"strings"
	"testing"
	"time"

	"lode"
)

const kinds = `
app: shop
secrets: [A_KEY]
defaults: {memory: 64MiB, route: /x, schedule: "@every 10s", env: {D: d}}
agents:
  cart: {partitions: 8, reentrant: chain, idle: 5m, ttl: 30d, state_max: 1MiB, mailbox: 7, reads: barrier, methods: {total: read}, memory: 1GiB}
  room:
  once: {reuse: false, ttl: never, access: public}
`

func TestKinds(t *testing.T) {
	d, err := Parse([]byte(kinds), "/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	cart, room, once := d.Agents["cart"], d.Agents["room"], d.Agents["once"]
	want := lode.AgentSpec{Partitions: 8, Reentrant: lode.ReentrantChain, Idle: 5 * time.Minute, TTL: 30 * day, StateMax: mib, Mailbox: 7, Reads: lode.ReadsBarrier, Read: []string{"total"}}
	if got := *cart.Agent; !sameSpec(got, want) {
		t.Errorf("cart %+v", got)
	}
	want = lode.AgentSpec{Partitions: 64, Reentrant: lode.ReentrantRefuse, Idle: time.Minute, StateMax: gib, Mailbox: 1000, Reads: lode.ReadsLease}
	if got := *room.Agent; !sameSpec(got, want) {
		t.Errorf("room %+v", got)
	}
	if !cart.Reuse || !room.Reuse || once.Reuse || once.Access != lode.AccessPublic || room.Access != lode.AccessToken {
		t.Errorf("reuse %v %v %v, access %s %s", cart.Reuse, room.Reuse, once.Reuse, once.Access, room.Access)
	}
	if cart.Limits.Memory != gib || room.Limits.Memory != 64*mib || room.Limits.Total != 30*time.Second || room.Env["D"] != "d" || !slices.Equal(room.Secrets, []string{"A_KEY"}) {
		t.Errorf("limits %+v %+v, env %v, secrets %v", cart.Limits, room.Limits, room.Env, room.Secrets)
	}
	if len(room.Routes)+len(room.Schedules) > 0 {
		t.Errorf("a kind took triggers from the defaults: %v %v", room.Routes, room.Schedules)
	}
	if d.Implicit || len(d.Sources()) != 1 || !slices.Equal(d.Sources()[0].For, []lode.Name{"cart", "once", "room"}) {
		t.Errorf("implicit %v, sources %v", d.Implicit, d.Sources())
	}
}

func sameSpec(a, b lode.AgentSpec) bool {
	same := slices.Equal(a.Read, b.Read) && slices.Equal(a.Methods, b.Methods)
	a.Read, b.Read, a.Methods, b.Methods = nil, nil, nil, nil
	return same && a.Class == b.Class && a.Partitions == b.Partitions && a.Reentrant == b.Reentrant && a.Reads == b.Reads &&
		a.Idle == b.Idle && a.TTL == b.TTL && a.StateMax == b.StateMax && a.Mailbox == b.Mailbox
}

// described is one artifact of /x that says e of itself.
func described(e *lode.Description) map[string][]Artifact {
	return map[string][]Artifact{"/x": {{Name: "n", Size: 3, Language: "go", Contract: lode.ContractHandler, Exports: e}}}
}

func TestCompleteKinds(t *testing.T) {
	code := func(names ...string) *lode.Description {
		out := &lode.Description{ABI: 1}
		for _, n := range names {
			out.Kinds = append(out.Kinds, lode.KindExp{Name: n, Methods: []string{"add", "total"}})
		}
		return out
	}
	withHandler := code("cart")
	withHandler.Functions = []lode.Export{{}}
	for _, tt := range []struct {
		name, file string
		code       *lode.Description
		functions  string
		agents     string // name=class
		fails      string
	}{
		{"only a kind", "", code("cart"), "", "cart=cart", ""},
		{"beside a handler", "", withHandler, "x", "cart=cart", ""},
		{"two kinds", "", code("Cart", "Room"), "", "cart=Cart room=Room", ""},
		{"defaults of functions", "defaults: {route: /y, memory: 1GiB}\n", code("cart"), "", "cart=cart", ""},
		{"the app's name twice", "app: cart\n", withHandler, "", "", "both a function and a kind"},
		{"the name of a queue", "queues: {cart: {}}\n", code("cart"), "", "", "a queue or dataset"},
		{"declared", "agents: {cart: {}}\n", withHandler, "", "cart=cart", ""},
		{"under another name", "agents: {basket: {}}\n", code("Cart"), "", "basket=Cart", ""},
		{"one of several", "agents: {room: {}}\n", code("Cart", "Room"), "", "room=Room", ""},
		{"none of several", "agents: {rom: {}}\n", code("Cart", "Room"), "", "", "no kind of that name"},
		{"none at all", "agents: {cart: {}}\n", code(), "", "", "no kinds of agents"},
		{"says nothing of itself", "agents: {cart: {}}\n", nil, "", "cart=", ""},
		{"a method that reads", "agents: {cart: {methods: {total: read}}}\n", code("cart"), "", "cart=cart", ""},
		{"a method that is not there", "agents: {cart: {methods: {totl: read}}}\n", code("cart"), "", "", `no method "totl"`},
		{"as a function", "functions: {cart: {}}\n", code("cart"), "", "", "no handler, only the kind of agents cart"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := Parse([]byte(tt.file), "/x", nil)
			if err != nil {
				t.Fatal(err)
			}
			if d.Name == "" {
				d.Name = "x"
			}
			app, err := d.Complete(described(tt.code))
			if tt.fails != "" {
				if lode.KindOf(err) != lode.Invalid || !strings.Contains(err.Error(), tt.fails) || lode.AsError(err).Hint == "" {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var functions, agents []string
			for n := range app.Functions {
				functions = append(functions, string(n))
			}
			for n, f := range app.Agents {
				agents = append(agents, string(n)+"="+f.Agent.Class)
				if !f.Reuse || f.Size != 3 || f.Contract != lode.ContractHandler || len(f.Routes) > 0 {
					t.Errorf("%s: %+v", n, f)
				}
			}
			slices.Sort(functions)
			slices.Sort(agents)
			if strings.Join(functions, " ") != tt.functions || strings.Join(agents, " ") != tt.agents {
				t.Errorf("functions %v, agents %v", functions, agents)
			}
		})
	}
}

func TestACommandIsNoKind(t *testing.T) {
	d, err := Parse([]byte("agents: {cart: {}}\n"), "/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Complete(map[string][]Artifact{"/x": {{Contract: lode.ContractCommand}}})
	if lode.KindOf(err) != lode.Invalid || !strings.Contains(err.Error(), "agents are handlers") {
		t.Fatalf("got %v", err)
	}
}
