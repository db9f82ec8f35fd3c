package lode

import (
	"encoding/binary"
	"hash/fnv"
	"slices"
	"strings"
)

// NodeID names a node in its cluster. It is the name that people see, and the
// one in the node's certificate; no two nodes of a cluster have the same. Law:
// [a-z0-9][a-z0-9-]{0,62}, without a hyphen at the end.
type NodeID string

// ParseNodeID checks s against the law of node names. The error is of kind
// Invalid and hints at a name that would do.
func ParseNodeID(s string) (NodeID, error) {
	if validNode(s) {
		return NodeID(s), nil
	}
	err := Errorf(Invalid, "%q is no name for a node", s)
	if near := nodeLike(s); near != "" {
		return "", err.WithHint("%q would be one: lower-case letters, digits and hyphens, at most 63", near)
	}
	return "", err.WithHint("lower-case letters, digits and hyphens, at most 63")
}

// NodeIDFromHost makes a node's name from a host's: the part before the first
// dot. A host's name with nothing to use in it gives "node".
func NodeIDFromHost(host string) NodeID {
	host, _, _ = strings.Cut(host, ".")
	if near := nodeLike(host); near != "" {
		return NodeID(near)
	}
	return "node"
}

func validNode(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// nodeLike is the valid name nearest to s, or "".
func nodeLike(s string) string {
	near := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r == '_' || r == ' ' || r == '.' || r == '-':
			return '-'
		}
		return -1
	}, s)
	near = strings.Trim(near[:min(len(near), 63)], "-")
	if !validNode(near) {
		return ""
	}
	return near
}

// Rendezvous orders nodes by how much key belongs to each of them, the most
// first (highest random weight). It depends on the names alone, so everybody
// who knows the same nodes gives the same answer, and of a key's first k nodes
// a change of the set moves only those that have to. nodes is not changed.
func Rendezvous(key []byte, nodes []NodeID) []NodeID {
	type weighed struct {
		node   NodeID
		weight uint64
	}
	all := make([]weighed, len(nodes))
	for i, n := range nodes {
		h := fnv.New64a()
		h.Write(key)
		h.Write([]byte{0})
		h.Write([]byte(n))
		all[i] = weighed{n, mix(h.Sum64())}
	}
	slices.SortFunc(all, func(a, b weighed) int {
		if a.weight != b.weight {
			if a.weight > b.weight {
				return -1
			}
			return 1
		}
		return strings.Compare(string(a.node), string(b.node))
	})
	out := make([]NodeID, len(all))
	for i, w := range all {
		out[i] = w.node
	}
	return out
}

// mix spreads the bits of a hash whose low bits depend little on its last
// bytes (the finisher of splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// RendezvousKey is the key of the i-th piece of something, as Rendezvous takes
// it.
func RendezvousKey(name string, i int) []byte {
	return binary.BigEndian.AppendUint64([]byte(name), uint64(i))
}
