// Package agenttest checks what clients of agents saw: tests of agents in one
// process and in real clusters share it.
package agenttest

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// Step is one operation on one agent.
type Step struct{ Agent, Method, Arg string }

// Said is what it answered.
type Said struct {
	Value   string
	Unknown bool // nobody knows whether it took effect
}

// objects is the model of one agent: a counter, a register or a set, which is
// one string here.
var objects = porcupine.Model{
	Partition: func(history []porcupine.Operation) (out [][]porcupine.Operation) {
		by := map[string][]porcupine.Operation{}
		for _, o := range history {
			a := o.Input.(Step).Agent
			by[a] = append(by[a], o)
		}
		for _, h := range by {
			out = append(out, h)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(string), input.(Step), output.(Said)
		switch in.Method {
		case "add":
			n, _ := strconv.Atoi(s)
			by, _ := strconv.Atoi(in.Arg)
			s = strconv.Itoa(n + by)
			return out.Unknown || out.Value == s, s
		case "get", "look":
			if s == "" {
				s = "0"
			}
			return out.Unknown || out.Value == s, state
		case "put":
			return true, in.Arg
		case "note": // a set that grows
			return true, s + in.Arg + " "
		}
		return out.Unknown || out.Value == s, state // peek
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprint(input, " -> ", output) },
}

// Ordered has a history explained by one order of its operations: of a Step
// each, and a Said.
func Ordered(t testing.TB, ops []porcupine.Operation) {
	t.Helper()
	switch porcupine.CheckOperationsTimeout(objects, ops, 60*time.Second) {
	case porcupine.Unknown:
		t.Logf("%d operations: the check took too long", len(ops))
	case porcupine.Illegal:
		t.Errorf("%d operations are in no order that explains them", len(ops))
		for _, one := range objects.Partition(ops) {
			if porcupine.CheckOperations(objects, one) {
				continue
			}
			for _, o := range one {
				t.Logf("  %d: %9.3f-%9.3f %v -> %v", o.ClientId, float64(o.Call)/1e6, float64(o.Return)/1e6, o.Input, o.Output)
			}
			return
		}
	}
}
