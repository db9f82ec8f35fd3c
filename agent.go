package lode

import (
	"encoding/binary"
	"hash/fnv"
	"time"
)

// AgentSpec makes a function's code a kind of agents: a Function whose Agent
// is set is declared under agents, not functions, and called by the addresses
// kind/key. Every value is filled in; zero values are those of an old record
// and mean the default.
type AgentSpec struct {
	Class      string        `json:"class,omitempty"`     // the kind's name in the module; "": its only one
	Partitions int           `json:"partitions"`          // 64; fixed by the first deploy
	Reentrant  Reentrant     `json:"reentrant,omitempty"` // refuse
	Reads      Reads         `json:"reads,omitempty"`     // lease
	Idle       time.Duration `json:"idle,omitempty"`      // in memory without a message, 60 s
	TTL        time.Duration `json:"ttl,omitempty"`       // an agent without a message for so long is removed; 0: never
	StateMax   int64         `json:"state_max,omitempty"` // bytes of one agent, 1 GiB
	Mailbox    int           `json:"mailbox,omitempty"`   // messages that wait at one agent, 1,000
	Methods    []string      `json:"methods,omitempty"`   // of the code, as it said of itself; empty: not known
	Read       []string      `json:"read,omitempty"`      // methods that only read
	Near       string        `json:"near,omitempty"`      // a dataset, kind, node, zone or label (key=value) whose nodes its partitions are to be on, where that can be; "": any
}

// Reentrant says what becomes of a call to an agent that waits, directly or
// not, for that very call.
type Reentrant string

// The answers to re-entry.
const (
	ReentrantRefuse Reentrant = "refuse" // Conflict
	ReentrantChain  Reentrant = "chain"  // it runs; each call commits what was written before it
)

// Reads says how a method that only reads is known to see everything that was
// acknowledged before.
type Reads string

// The ways to read.
const (
	ReadsLease   Reads = "lease"   // by the node's lease: no write, rests on clock rates
	ReadsBarrier Reads = "barrier" // by a write to the journal after the read began
)

// DefaultPartitions is how many partitions a kind has that says nothing.
const DefaultPartitions = 64

// PartitionOf is the partition, of n, that an agent's key belongs to. It never
// changes for a key and an n.
func PartitionOf(key string, n int) int {
	h := fnv.New64a()
	h.Write([]byte(key))
	return int(mix(h.Sum64()) % uint64(max(n, 1)))
}

// TurnKind is what a message asks of an agent.
type TurnKind string

// The kinds of turns.
const (
	TurnCall   TurnKind = "call"   // a method
	TurnRead   TurnKind = "read"   // a method that only reads
	TurnFetch  TurnKind = "fetch"  // an HTTP request
	TurnTimer  TurnKind = "timer"  // a timer is due: a method
	TurnSocket TurnKind = "socket" // something of a WebSocket
)

// AgentCall is one message to an agent.
type AgentCall struct {
	Namespace Namespace
	Kind      Name
	Key       string
	Turn      TurnKind // "": call, or read where the method is one that only reads
	Method    string   // of the agent; of HTTP where Turn is fetch
	Path      string   // fetch
	// ID names the turn: the same ID takes effect once, and a repetition gets
	// the first one's reply. "": a new one, so that only what the platform
	// itself repeats is recognised. Given says that the caller chose it (an
	// idempotency key): it is remembered for a day, else for minutes.
	ID    string
	Given bool
	Head  []Pair // header fields; content-type says what Body is
	Body  []byte
	// Deadline ends waiting; zero: the kind's own.
	Deadline time.Time
	Caller   string   // address of who calls, "" from outside
	Chain    []string // addresses of agents that wait for this call, outermost first; what an agent adds also names its turn
	Trace    string   // traceparent
	Depth    int
	Delay    time.Duration // of a message that nobody waits for
}

// AgentReply is what an agent answered.
type AgentReply struct {
	Status   int
	Head     []Pair
	Body     []byte
	ID       string // of the turn
	Node     NodeID // where it ran
	Repeated bool   // the reply of an earlier turn with the same ID
}

// AgentEvent is one event that an agent has emitted, for whoever listens.
type AgentEvent struct {
	N    uint64 // 1, 2, 3 ... of this agent
	Type string // "": message
	Data []byte
}

// SocketFrame is something that an agent tells one of its WebSockets. The
// node that holds the socket drops an N that it has seen.
type SocketFrame struct {
	Socket string // NODE~random: the node that holds it is part of its name
	N      uint64 // 1, 2, 3 ... of this socket
	Binary bool
	Data   []byte
	Close  bool // close it, with Code and Data as the reason
	Code   int
}

// GroupOp is how an all-reduce combines.
type GroupOp string

// The operations of groups.
const (
	GroupSum  GroupOp = "sum"
	GroupMean GroupOp = "mean"
	GroupMax  GroupOp = "max"
)

// TurnIDOf makes the id of the n-th call that a turn makes: a turn that is
// repeated makes the same ids.
func TurnIDOf(turn string, n int) string {
	h := fnv.New128a()
	h.Write([]byte(turn))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	const digits = "0123456789abcdef"
	sum := h.Sum(nil)
	out := make([]byte, 0, 33)
	out = append(out, 'c')
	for _, b := range sum {
		out = append(out, digits[b>>4], digits[b&15])
	}
	return string(out)
}
