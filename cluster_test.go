package lode

import (
	"slices"
	"testing"
)

func TestNodeID(t *testing.T) {
	for s, want := range map[string]string{"a": "a", "node-1": "node-1", "": "", "A": "", "-a": "", "a-": "", "a.b": "", "ä": ""} {
		if got, err := ParseNodeID(s); string(got) != want || (err == nil) != (want != "") {
			t.Errorf("ParseNodeID(%q) = %q, %v", s, got, err)
		}
	}
	for s, want := range map[string]NodeID{"Host_1.example.org": "host-1", "...": "node", "": "node", "-x-": "x"} {
		if got := NodeIDFromHost(s); got != want {
			t.Errorf("NodeIDFromHost(%q) = %q, want %q", s, got, want)
		}
	}
}

// TestRendezvous holds the two properties that replicas rely on: an even
// spread, and that the loss of a node moves nothing that it did not have.
func TestRendezvous(t *testing.T) {
	nodes := []NodeID{"a", "b", "c", "d", "e"}
	first := map[NodeID]int{}
	const keys = 20000
	for i := range keys {
		key := RendezvousKey("x", i)
		all := Rendezvous(key, nodes)
		first[all[0]]++
		for gone := range nodes {
			rest := slices.Delete(slices.Clone(nodes), gone, gone+1)
			want := slices.DeleteFunc(slices.Clone(all), func(n NodeID) bool { return n == nodes[gone] })
			if got := Rendezvous(key, rest); !slices.Equal(got, want) {
				t.Fatalf("key %d without %s: %v, want %v", i, nodes[gone], got, want)
			}
		}
	}
	for n, c := range first {
		if c < keys/5*9/10 || c > keys/5*11/10 {
			t.Errorf("node %s is the first of %d of %d keys", n, c, keys)
		}
	}
}
