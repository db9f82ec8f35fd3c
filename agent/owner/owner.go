// Package owner decides which node owns which partition of agents, and keeps
// to it: that at any time at most one node can write a partition, that no node
// reads one after another may have written it, and that the data of each epoch
// begins where that of the epoch before ends.
//
// A node has one journal, a [bus.Log] of its own ([JournalName]). Whoever opens
// a log ends the writer before; so a node that starts again ends its former
// self, and a node that takes over from a dead one ends it, by the same act.
// Two tables of the bus say the rest:
//
//	agents       ns/kind/n -> [Register]  who owns a partition, in which epoch, and where its data was before
//	agent-nodes  node      -> [NodeRecord] which incarnation of a node is the present one, and whether it may renew its lease
//
// Both are changed by compare-and-swap only, and a register is never deleted:
// epochs of a partition must only grow, as long as any journal names them. What a node has cached of them is
// a hint: nothing is written that a swap does not confirm.
//
// What decides is in machines without clock and I/O (term.go, part.go,
// takeover.go); what it takes from the bus, and the time, is in the shell
// (shell.go and after). The tests explore every interleaving of the machines.
//
// A partition on a node:
//
//	closed -(nobody has it, or this node's former self has)-> claiming -(swapped)-> taking
//	       -(the register names this incarnation)-> taking -(loaded, take entry stored, wait over)-> owner
//	owner -(Move)-> giving -(stopped, give entry stored, register swapped)-> closed
//	any -(another has opened the journal)-> closed
//
// Only agent may import it. Lock order: Owners.mu is a leaf.
package owner

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/bus"
)

// Config is what Owners work with. Everything but the last group is needed.
type Config struct {
	Self lode.NodeID
	Bus  *bus.Bus
	// Alive says whether a node is heard of, by heartbeats. It is asked a few
	// times a second, and must answer at once.
	Alive func(lode.NodeID) bool
	// Nodes lists the members that may own partitions, living or not.
	Nodes func() []lode.NodeID
	// Eligible says whether a node may be given partitions now: it is alive,
	// not draining, not only a gateway.
	Eligible func(lode.NodeID) bool
	Journal  Journal
	Hooks    Hooks

	// LeaseTTL is how long after its last renewal a node may answer reads by
	// its lease, and so about how long a take-over waits. 0: 1 s. All nodes of
	// a cluster must have the same.
	LeaseTTL time.Duration
	// Detect is how long a node must be unheard of, beyond what Alive waits,
	// before it is taken to be dead. 0: 400 ms.
	Detect time.Duration
	// Alone says that nobody can write the bus without this very process: the
	// node is its only member, in this process. Then no lease is renewed and
	// reads need none. Nil: never.
	Alone  func() bool
	Logger *slog.Logger // nil: slog.Default
}

// Journal is where the entries of this node go. It packs them and commits them
// to the log that it was given last.
type Journal interface {
	// Begin starts a term: entries go into log from now on. incarnation names
	// the term; what Append is called with belongs to it until Hooks.Ended.
	Begin(log *bus.Log, incarnation string)
	// Append stores e behind all that was appended before, and calls done once
	// when that is known: with the position of its message, or with an error.
	// Conflict: the term is over, e is not stored. An outcome that is not known
	// is no outcome: done is not called before it is, or the term was ended.
	// Append does not wait, and done must not either.
	Append(e *journal.Entry, done func(pos uint64, err error))
}

// Claim is one partition that is about to be taken.
type Claim struct {
	Partition journal.Partition
	Epoch     uint64       // that begins
	Base      journal.Base // where the data is; zero: there is none
}

// Loaded is what a take entry carries beside the Claim.
type Loaded struct {
	Manifest lode.Digest // a snapshot; zero: none
	Covers   uint64      // position in Base.Journal that it covers
}

// Hooks is what the owner of partitions tells the service that runs agents.
// Load, Start and Stop of one partition are never called at the same time.
type Hooks interface {
	// Load brings the state of partitions, as it was in Base.Journal before
	// Base.Cut in Base.Epoch, into this node, and returns one Loaded for each.
	// All of them have the same Base.Journal, so one pass may do. It may fail
	// with any error: it is called again after a while. Ended may be called
	// while it runs: ctx is cancelled first.
	Load(ctx context.Context, claims []Claim) ([]Loaded, error)
	// Start says that the partition is this node's: its take entry is stored
	// and nobody else may still read it. It must not wait.
	Start(p journal.Partition, epoch uint64)
	// Stop ends turns and reads of a partition. When it returns, no entry of it
	// will be appended any more; entries that were appended may be under way.
	// An error, or the end of ctx, calls the move off: the partition goes on
	// here, and Stop must have undone what it did.
	Stop(ctx context.Context, p journal.Partition) error
	// Gone says that a partition was given away, for good, to node.
	Gone(p journal.Partition, epoch uint64, to lode.NodeID)
	// Ended says that another has opened the journal: nothing that is not
	// acknowledged will be, all partitions are closed, no read may be answered.
	// When it returns, a new term begins, with Journal.Begin.
	Ended()
}

// Warmer is an optional ability of Hooks: to bring the state of a partition that
// is about to be given away to where it goes, while it is still served here.
// What it fails to do costs time later, no more. Stop is called after it.
type Warmer interface {
	Warm(ctx context.Context, p journal.Partition, to lode.NodeID)
}

// Owner is who has a partition, as far as this node knows.
type Owner struct {
	Node  lode.NodeID
	Epoch uint64
	State State // on this node; StateClosed where another one has it
}

// State is where a partition is on this node.
type State uint8

// The states; see the package comment.
const (
	StateClosed   State = iota
	StateClaiming       // the register is being swapped
	StateTaking         // the data is loaded, the take entry written, the wait waited
	StateOwner          // turns and reads are answered here
	StateGiving         // the last entries are written, then the register is swapped
)

func (s State) String() string {
	return [...]string{"closed", "claiming", "taking", "owner", "giving"}[s]
}

// Register says who owns a partition. It is JSON in the table agents.
type Register struct {
	Epoch       uint64       `json:"epoch"` // grows with each swap that names another node or incarnation
	Node        lode.NodeID  `json:"node"`
	Incarnation string       `json:"incarnation,omitempty"` // that may take it as it stands; any other swaps first
	Base        journal.Base `json:"base"`
	// Wait is for how long after this was written the owner before may still
	// read, so for how long after it has seen it Node must wait.
	Wait time.Duration `json:"wait,omitempty"`
	// Settled says that the partition has been taken in this epoch, that no
	// wait is due, and that neither Base nor Pins are needed any more.
	Settled bool `json:"settled,omitempty"`
	// Pins are the nodes, sorted and with commas between, in whose journals is
	// what the data at Base itself began with: an owner may have gone before
	// it had a snapshot of its own.
	Pins string `json:"pins,omitempty"`
}

// pins is what the next register pins, whose base is in the epoch of r if held,
// and else that of r.
func (r *Register) pins(held bool) string {
	if r.Settled || !held || r.Base.Journal == "" {
		if r.Settled {
			return ""
		}
		return r.Pins
	}
	nodes := []string{string(r.Base.Journal)}
	if r.Pins != "" {
		nodes = append(nodes, strings.Split(r.Pins, ",")...)
	}
	slices.Sort(nodes)
	return strings.Join(slices.Compact(nodes), ",")
}

// needs reports whether entries of n's journal may be needed to load the
// partition.
func (r *Register) needs(n lode.NodeID) bool {
	return !r.Settled && (r.Base.Journal == n || slices.Contains(strings.Split(r.Pins, ","), string(n)))
}

// NodeRecord says which incarnation of a node is the present one. It is JSON in
// the table agent-nodes.
type NodeRecord struct {
	Incarnation string    `json:"incarnation"`
	Count       uint64    `json:"count"` // of renewals; 0: it has never had a lease
	State       NodeState `json:"state"`
}

// NodeState is whether an incarnation may renew its lease.
type NodeState string

// The states of nodes.
const (
	NodeUp      NodeState = "up"
	NodeSuspect NodeState = "suspect" // it is being taken over: it cannot renew any more
	NodeDown    NodeState = "down"    // it has ended by itself and reads nothing
)
