package api

import (
	"bytes"
	"context"
	"encoding/json"
	"time"
	"unicode/utf8"

	"lode"
)

// Agents is the agents of deployed kinds: where they are, what they hold, what
// they wait for. The kinds themselves are names, and behind Apps.
//
// Agents are owned: each partition of a kind by one node at a time. A Backend
// answers for the partitions that its own node owns, and Everywhere brings
// what is about one partition to the node that Where names, and makes one
// answer of what all nodes say of theirs. A method that is about one
// partition, and finds that the node does not own it, is Unavailable with a
// RetryAfter: who asked was told of an owner that is it no more. A kind that is
// not deployed is NotFound.
type Agents interface {
	// Where is the partition of a key, and the node that owns it now; "" if
	// nobody does, and then whichever node is asked takes it. It answers from
	// memory.
	Where(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) (AgentPlace, error)
	// ListPartitions lists the partitions of a kind, or of all (""): those that
	// this node owns, in full, and of the others what is known without asking
	// their owners. Ordered by kind and number.
	ListPartitions(ctx context.Context, ns lode.Namespace, kind lode.Name) ([]Partition, error)
	// ListAgents lists the agents in the partitions that this node owns, by
	// address. Page.After is an address.
	ListAgents(ctx context.Context, ns lode.Namespace, f AgentFilter, p Page) (List[Agent], error)
	// GetAgent shows an agent of a partition that this node owns; NotFound for
	// one of which nothing is stored, and in which nothing runs.
	GetAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) (AgentDetail, error)
	// RemoveAgent removes an agent of a partition that this node owns, with its
	// state, timers and what waits for it, as a turn of its own. It is
	// idempotent.
	RemoveAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) error
	// ReplayAgent makes a dead message of an agent a message again; n as in
	// DeadMessage. NotFound if there is none of that number.
	ReplayAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string, n uint64) (DeadMessage, error)
	// MovePartition gives a partition that this node owns to another node, and
	// waits until that one has it. To "" placement chooses. Moving it to where
	// it is does nothing.
	MovePartition(ctx context.Context, ns lode.Namespace, kind lode.Name, partition int, to lode.NodeID) (Partition, error)
	// ExportAgents calls see with every agent in the partitions of a kind that
	// this node owns, and returns the numbers of those partitions. Each agent
	// is what it was at one moment, between two turns; not all at the same. One
	// that is larger than ExportPart comes in parts.
	ExportAgents(ctx context.Context, ns lode.Namespace, kind lode.Name, see func(AgentDump) error) ([]int, error)
	// ImportAgents makes agents, all of partitions that this node owns, what
	// the dumps say. Each dump is one turn. An agent that is there already is a
	// Conflict, unless o.Replace is set; part 1 and the next add to what is
	// there. Those before the one that failed are imported.
	ImportAgents(ctx context.Context, ns lode.Namespace, kind lode.Name, dumps []AgentDump, o ImportOptions) (Imported, error)
	// ExplainAgent says where an agent is and why, what runs in it, and in
	// Explanation.Waits which turns that this node knows of wait for which
	// agents, of the whole namespace: who merges them looks for those that
	// matter (WaitsAround). Every node answers; Kind is "agent" on the owner,
	// "" elsewhere.
	ExplainAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) (Explanation, error)
}

// AgentPlace is where an agent is.
type AgentPlace struct {
	Partition  int         `json:"partition"`
	Partitions int         `json:"partitions"` // of the kind
	Node       lode.NodeID `json:"node,omitempty"`
}

// AgentFilter picks agents. Zero fields pick all.
type AgentFilter struct {
	Kind      lode.Name
	Partition int // 1 + its number; 0: all
}

// Agent is one agent, as in a listing.
type Agent struct {
	Address   string    `json:"address"` // kind/key
	Kind      lode.Name `json:"kind"`
	Key       string    `json:"key"`
	Partition int       `json:"partition"`
	Node      string    `json:"node"`               // that owns the partition
	Bytes     int64     `json:"bytes"`              // of keys and values
	Keys      int64     `json:"keys,omitempty"`     // of state; of GetAgent only: a listing does not count them
	Timers    int       `json:"timers"`             // that are set
	Dead      int       `json:"dead,omitempty"`     // messages given up
	Waiting   int       `json:"waiting,omitempty"`  // in its mailbox
	Active    bool      `json:"active,omitempty"`   // it is in memory
	Last      time.Time `json:"last,omitzero"`      // of its last turn that took effect
	Method    string    `json:"method,omitempty"`   // of the turn that runs now; "": none does
	Revision  int       `json:"revision,omitempty"` // that its last turn ran on
}

// AgentDetail is everything about an agent.
type AgentDetail struct {
	Agent
	Epoch   uint64        `json:"epoch"` // of the partition's owner
	State   []StateValue  `json:"state"` // by key; at most StateShown of them
	More    bool          `json:"more,omitempty"`
	Set     []AgentTimer  `json:"set,omitempty"`     // timers, the next one first
	Sockets []AgentSocket `json:"sockets,omitempty"` // that are open
	Letters []DeadMessage `json:"letters,omitempty"` // dead messages, the oldest first
	Journal []AgentEntry  `json:"journal,omitempty"` // its last turns that are in the journal still, oldest first; at most 50
}

// The bounds of what GetAgent shows.
const (
	StateShown = 1000     // keys
	ValueShown = 64 << 10 // bytes of a value
	ExportPart = 2 << 20  // bytes of keys and values in one AgentDump, each pair counted with 32 more
)

// StateValue is one key of an agent's state; see ShowState.
type StateValue struct {
	Key    string          `json:"key,omitempty"`
	Key64  []byte          `json:"key64,omitempty"`  // instead of Key: the key is no text
	JSON   json.RawMessage `json:"json,omitempty"`   // the value, where it is JSON
	Base64 []byte          `json:"base64,omitempty"` // else
	Size   int64           `json:"size"`             // bytes of the value
	Cut    bool            `json:"cut,omitempty"`    // only the first ValueShown bytes are here
}

// ShowState makes a StateValue of a key and a value.
func ShowState(key, value []byte) StateValue {
	v := StateValue{Size: int64(len(value))}
	if text(key) {
		v.Key = string(key)
	} else {
		v.Key64 = bytes.Clone(key)
	}
	if len(value) > ValueShown {
		v.Cut, v.Base64 = true, bytes.Clone(value[:ValueShown])
		return v
	}
	if json.Valid(value) {
		v.JSON = bytes.Clone(value)
	} else {
		v.Base64 = bytes.Clone(value)
	}
	return v
}

// text reports whether b can be shown as it is.
func text(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return utf8.Valid(b)
}

// AgentTimer is a timer that is set.
type AgentTimer struct {
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	Method string    `json:"method"`
	Tries  int       `json:"tries,omitempty"` // turns of it that failed
}

// AgentSocket is a WebSocket of an agent.
type AgentSocket struct {
	Socket string   `json:"socket"`
	Node   string   `json:"node"` // that holds it
	Tags   []string `json:"tags,omitempty"`
}

// DeadMessage is a message, or a timer, whose turn failed its last attempt.
type DeadMessage struct {
	N      uint64      `json:"n"` // names it, of this agent
	At     time.Time   `json:"at"`
	ID     string      `json:"id"` // of the turn
	Turn   string      `json:"turn"`
	Method string      `json:"method,omitempty"`
	Timer  string      `json:"timer,omitempty"`  // its name
	Caller string      `json:"caller,omitempty"` // "": from outside
	Tries  int         `json:"tries"`
	Bytes  int64       `json:"bytes"` // of the body
	Error  *lode.Error `json:"error,omitempty"`
}

// AgentEntry is one turn in the journal.
type AgentEntry struct {
	At       time.Time `json:"at,omitzero"`
	Position uint64    `json:"position"` // in the journal of Node
	Node     string    `json:"node"`
	Epoch    uint64    `json:"epoch"`
	ID       string    `json:"id"`
	Method   string    `json:"method,omitempty"`
	Revision int       `json:"revision"`
	Puts     int       `json:"puts"`
	Deletes  int       `json:"deletes"`
	Sends    int       `json:"sends"`
	Bytes    int64     `json:"bytes"`
}

// Partition is one partition of a kind.
type Partition struct {
	Kind     lode.Name      `json:"kind"`
	N        int            `json:"partition"`
	Owner    string         `json:"owner,omitempty"` // "": nobody
	Epoch    uint64         `json:"epoch"`
	State    PartitionState `json:"state"`
	Agents   int64          `json:"agents"`
	Bytes    int64          `json:"bytes"`
	Turns    float64        `json:"turns_per_second"` // over the last minute
	CPU      time.Duration  `json:"cpu,omitempty"`    // of a turn, in ns; 0: not known
	Waiting  int            `json:"waiting"`          // messages in mailboxes
	Answered bool           `json:"answered"`         // the numbers are its owner's; else it did not answer
}

// PartitionState is where the ownership of a partition stands.
//
//	free -> taking -> owned -> giving -> taking ...
//	            \        \--------> lost -> taking
//	             \-> damaged
type PartitionState string

// The states.
const (
	PartitionFree    PartitionState = "free"    // nobody asked for any of its agents yet
	PartitionTaking  PartitionState = "taking"  // its new owner reads it
	PartitionOwned   PartitionState = "owned"   // its agents answer
	PartitionGiving  PartitionState = "giving"  // it moves
	PartitionLost    PartitionState = "lost"    // its owner is not heard of
	PartitionDamaged PartitionState = "damaged" // its journal or snapshot is
)

// AgentMove asks for a move of one partition: its number, or the key of one of
// its agents.
type AgentMove struct {
	Partition *int        `json:"partition,omitempty"`
	Key       string      `json:"key,omitempty"`
	To        lode.NodeID `json:"to,omitempty"` // "": placement chooses
}

// AgentDump is one agent, or a part of one, outside of a cluster: a line of an
// export.
type AgentDump struct {
	Key    string      `json:"key"`
	Part   int         `json:"part,omitempty"` // 0, 1, 2 ... of an agent that is too large for one line
	State  []DumpValue `json:"state,omitempty"`
	Timers []DumpTimer `json:"timers,omitempty"` // in part 0
}

// DumpValue is one key of state.
type DumpValue struct {
	Key   []byte `json:"k"`
	Value []byte `json:"v"`
}

// DumpTimer is one timer, with the arguments of its method.
type DumpTimer struct {
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	Method string    `json:"method"`
	Type   string    `json:"type,omitempty"` // media type of Body
	Body   []byte    `json:"body,omitempty"`
}

// ImportOptions go with an import.
type ImportOptions struct {
	Replace bool // agents that are there become what the dump says
}

// Imported is what an import brought in.
type Imported struct {
	Agents int64 `json:"agents"`
	Keys   int64 `json:"keys"`
	Timers int64 `json:"timers"`
	Bytes  int64 `json:"bytes"`
}

// Wait is one turn that waits for an agent: an edge of the wait graph.
type Wait struct {
	From   string    `json:"from"` // address of the agent, or function, whose turn waits; "": somebody outside
	To     string    `json:"to"`   // address of the agent that it waits for
	Method string    `json:"method,omitempty"`
	Turn   string    `json:"turn,omitempty"` // id of the one that is waited for
	Since  time.Time `json:"since"`
	Node   string    `json:"node,omitempty"`   // that runs From
	Queued bool      `json:"queued,omitempty"` // it is in the mailbox; else its turn runs
}
