package api

import (
	"context"
	"strings"
	"time"

	"lode"
)

// Nodes is the machines of the cluster: who they are, what they carry, who may
// come and who has to go. A node that is alone is a cluster of one.
type Nodes interface {
	// ListNodes is ordered by name. Every node that belongs to the cluster is
	// in it, the lost ones too.
	ListNodes(ctx context.Context) (NodeList, error)
	// GetNode is NotFound for a name that does not belong to the cluster.
	GetNode(ctx context.Context, name lode.NodeID) (Node, error)
	// DrainNode makes a node take nothing new, give away what it keeps (its
	// seat on the bus, the keeper's lease, the only copy of a shard) and finish
	// what it has begun. It is idempotent. It answers with the node as it is,
	// after at most wait; the drain is over when State is NodeDrained.
	DrainNode(ctx context.Context, name lode.NodeID, wait time.Duration) (Node, error)
	// UndrainNode takes a drain back; idempotent.
	UndrainNode(ctx context.Context, name lode.NodeID) (Node, error)
	// RemoveNode takes a node out of the cluster: its certificate is refused
	// from then on. A node that is neither drained nor lost is a Precondition
	// error, unless force is set.
	RemoveNode(ctx context.Context, name lode.NodeID, force bool) error
	// CreateJoinToken returns the only copy of a token that lets new nodes in.
	CreateJoinToken(ctx context.Context, s JoinSpec) (JoinToken, error)
	// ListJoinTokens lists those that still let somebody in, ordered by id.
	// Ids begin with JoinPrefix.
	ListJoinTokens(ctx context.Context) ([]Token, error)
	// RevokeJoinToken is idempotent.
	RevokeJoinToken(ctx context.Context, id string) error
	// CheckCluster is what is found out about the cluster as a whole: the bus
	// and its members, the keeper, clocks, copies. CheckNodes is what follows
	// from the list of nodes alone.
	CheckCluster(ctx context.Context) ([]Check, error)
}

// NodeState is where a node of the cluster stands.
//
//	joining -> ready <-> draining -> drained -> (removed)
//	             \----------\-----------\----> lost -> ready | (removed)
type NodeState string

// The states.
const (
	NodeJoining  NodeState = "joining"  // let in, not yet serving
	NodeReady    NodeState = "ready"    // serves
	NodeDraining NodeState = "draining" // takes nothing new, finishes what it has
	NodeDrained  NodeState = "drained"  // carries nothing: it may be stopped or removed
	NodeLost     NodeState = "lost"     // not heard of for a second or more
)

// What a node is to the bus.
const (
	BusMember = "member" // keeps a copy of everything acknowledged
	BusClient = "client" // goes to a member
)

// Node is one machine of the cluster.
type Node struct {
	Name    string            `json:"name"`
	State   NodeState         `json:"state"`
	Bus     string            `json:"bus"` // BusMember, BusClient
	Keeper  bool              `json:"keeper,omitempty"`
	CPU     int               `json:"cpu"`    // cores
	Memory  int64             `json:"memory"` // bytes
	GPU     []string          `json:"gpu"`
	Zone    string            `json:"zone,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Link    *Link             `json:"link,omitempty"` // from the node that answers; nil: it is this one
	Version string            `json:"version"`
	Started time.Time         `json:"started,omitzero"`
	Joined  time.Time         `json:"joined,omitzero"`
	Gateway string            `json:"gateway,omitempty"` // URL of its doors
	Peers   string            `json:"peers,omitempty"`   // host:port where other nodes reach it
	Running int               `json:"running"`           // invocations and shards
	Queued  int               `json:"queued"`            // waiting for admission
	// Left is what a draining node still carries beside Running and Queued, in
	// words: "2 shards without another copy". Empty: nothing.
	Left []string `json:"left,omitempty"`
}

// Empty reports whether the node carries nothing any more.
func (n *Node) Empty() bool { return n.State == NodeDrained }

// Link is the connection between the node that answers and another one.
type Link struct {
	Up        bool          `json:"up"`
	RTT       time.Duration `json:"rtt,omitempty"`
	Skew      time.Duration `json:"skew,omitempty"` // its wall clock minus ours, estimated
	LostSince time.Time     `json:"lost_since,omitzero"`
	Why       string        `json:"why,omitempty"` // it was lost
	BytesIn   int64         `json:"bytes_in,omitempty"`
	BytesOut  int64         `json:"bytes_out,omitempty"`
}

// NodeList is all nodes, and what they are together.
type NodeList struct {
	Items   []Node       `json:"items"`
	Cluster ClusterState `json:"cluster"`
}

// ClusterState is what the nodes are together.
type ClusterState struct {
	Members   []string `json:"members"`   // of the bus: 1, 3 or 5
	Answering int      `json:"answering"` // members that do
	Quorum    bool     `json:"quorum"`    // writes are acknowledged
	// Survives is how many nodes may be lost for ever, whichever they are, from
	// now on, without losing anything acknowledged. 0 with one member: a crash
	// loses nothing, the loss of its disk loses all.
	Survives   int    `json:"survives"`
	Keeper     string `json:"keeper,omitempty"`
	Generation uint64 `json:"generation"`         // of the bus: one more after each change of its members
	Moving     string `json:"moving,omitempty"`   // a change of the members under way, in words
	External   string `json:"external,omitempty"` // URL of a NATS cluster of the user's own, instead of members
}

// JoinSpec asks for a join token.
type JoinSpec struct {
	Uses int           // nodes that it lets in; 0 = 1
	For  time.Duration // 0 = an hour
}

// The bounds of a JoinSpec.
const (
	MaxJoinUses = 100
	MaxJoinFor  = 7 * 24 * time.Hour
	StdJoinFor  = time.Hour
)

// JoinPrefix begins the id of every join token.
const JoinPrefix = "join-"

// JoinToken lets new nodes in. It is told once.
type JoinToken struct {
	ID      string    `json:"id"`
	Token   string    `json:"token"` // lj1.<CA hash>.<secret>
	Uses    int       `json:"uses"`
	Expires time.Time `json:"expires"`
	Address string    `json:"address"` // host:port of the gateway to join, as --join takes it
	Command string    `json:"command"` // what to run on the new node
}

// JoinCommand is what to run on a new node; address is that of a gateway. A
// node on loopback is joined by another on the same machine, which needs ports
// and a folder of its own.
func JoinCommand(address, token string, loopback bool) string {
	if loopback {
		return "lode up --name NAME --port PORT -d DIR --join " + address + " --token " + token
	}
	return "lode up --bind ADDRESS --join " + strings.TrimSuffix(address, ":5633") + " --token " + token
}
