package node

import (
	"slices"
	"strings"
	"testing"

	"lode"
)

// TestChooseMembers reads a node as its name, then letters: m member, d dead,
// g gone for long, l leaves; then its zone.
func TestChooseMembers(t *testing.T) {
	for _, c := range []struct{ name, nodes, want string }{
		{"one node", "a:m", "a"},
		{"a second node never is a member", "a:m b", "a"},
		{"three nodes", "a:m b c", "a b c"},
		{"a fourth waits", "a:m b:m c:m d", "a b c"},
		{"five nodes", "a:m b:m c:m d e", "a b c d e"},
		{"six nodes", "a:m b:m c:m d e f", "a b c d e"},
		{"a dead one is waited for", "a:m b:m c:md d", "a b c"},
		{"one that is gone is replaced", "a:m b:m c:mdg d", "a b d"},
		{"and kept where nobody can replace it", "a:m b:m c:mdg", "a b c"},
		{"a dead newcomer does not count", "a:m b c:d", "a"},
		{"one that leaves is replaced", "a:ml b:m c:m d", "b c d"},
		{"and kept where nobody can", "a:ml b:m c:m", "a b c"},
		{"two are left of three", "a:m b:m", "a"},
		{"the only one of two that stays", "a:ml b", "b"},
		{"another zone first", "a:m/x b:/x c:/x d:/y e:d/z", "a b d"},
		{"the members of one zone stay", "a:m/x b:m/x c:m/x d:/y", "a b c"},
		{"five shrink to three when two are removed", "a:m b:m c:m", "a b c"},
		{"three of five are gone: nothing better", "a:m b:m c:mdg d:mdg e:mdg", "a b c d e"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var cs []candidate
			for _, f := range strings.Fields(c.nodes) {
				id, rest, _ := strings.Cut(f, ":")
				flags, zone, _ := strings.Cut(rest, "/")
				cs = append(cs, candidate{id: lode.NodeID(id), zone: zone, member: strings.Contains(flags, "m"), alive: !strings.Contains(flags, "d"),
					gone: strings.Contains(flags, "g"), leaves: strings.Contains(flags, "l")})
			}
			var got []string
			for _, id := range chooseMembers(cs) {
				got = append(got, string(id))
			}
			if want := strings.Fields(c.want); !slices.Equal(got, want) {
				t.Errorf("chose %v, want %v", got, want)
			}
		})
	}
}
