package placement

import "lode"

// Kind is what is to be placed.
type Kind uint8

// The kinds of work.
const (
	Call  Kind = iota // an invocation of a function; what it needs is code
	Shard             // shards of a dataset that one function maps; what it needs is their bytes
)

// Code is how near a revision's code is to running on a node.
type Code uint8

// The steps, each dearer than the next.
const (
	Absent   Code = iota // fetched from another node, then compiled
	Stored               // the artifact is on the node's disk; it is compiled
	Compiled             // compiled code is on the node's disk
	Loaded               // in memory: a sandbox is made in microseconds
	Warm                 // a sandbox waits
)

var codeWords = [...]string{"absent", "stored", "compiled", "loaded", "warm"}

func (c Code) String() string {
	if int(c) < len(codeWords) {
		return codeWords[c]
	}
	return "unknown"
}

// What code costs, in seconds, until something better is measured. They are
// estimates on the dear side: what they decide is whether a hop of 0.1 ms is
// taken instead.
const (
	loadTime       = 5e-3   // from compiled code to the first sandbox
	compilePerByte = 100e-9 // of the artifact: 10 MB/s
	someBandwidth  = 100e6  // bytes/s of a link that has carried nothing yet
)

// Time is what it takes to run code from here: size is the artifact's bytes,
// bandwidth what a fetch gets (bytes/s; 0: a guess). In seconds.
func (c Code) Time(size int64, bandwidth float64) float64 {
	switch {
	case c >= Loaded:
		return 0
	case c == Compiled:
		return loadTime
	}
	t := loadTime + float64(size)*compilePerByte
	if c == Absent {
		t += float64(size) / orSome(bandwidth)
	}
	return t
}

func orSome(bandwidth float64) float64 {
	if bandwidth <= 0 {
		return someBandwidth
	}
	return bandwidth
}

// State is whether a node takes work.
type State uint8

// The states.
const (
	Ready    State = iota
	Draining       // takes work only where nobody else does
	Down           // takes none: lost, or it has just refused this work
)

// Work is what is to be placed.
type Work struct {
	Kind Kind
	Size int64 // bytes of the artifact, for what fetching and compiling it cost
	// Run is what the work takes where nobody has told (seconds; 0: not known).
	Run float64
	// Copies and Flying count, for shards, the ready copies of the bytes and
	// those under way: a node that lacks the bytes is a candidate only while
	// Flying < Copies. Both 0: there is no such gate.
	Copies, Flying int
	Seed           uint64 // all chance comes from here: the same seed, the same choice
}

// Node is one node as the caller sees it for one piece of work.
type Node struct {
	ID    lode.NodeID
	State State
	Slots int     // computing at once
	Queue float64 // invocations that compute or wait there
	Mean  float64 // seconds of a slot that one of them takes, on average
	Run   float64 // seconds that this work takes there; 0: Work.Run
	Hop   float64 // seconds of a round trip, and of silence; 0: the caller's own node
	Slow  float64 // times longer than expected its answers take; 0: as expected
	Code  Code
	// Missing is the bytes of data that the node would fetch, at Bandwidth
	// (bytes/s; 0: a guess), after Backlog seconds of other transfers. Busy is
	// the share of time that its network is busy, 0 to 1.
	Missing   int64
	Bandwidth float64
	Backlog   float64
	Busy      float64
	Memory    int64 // free bytes; 0: not known
}

// holds reports whether n has what w needs.
func (n *Node) holds(w *Work) bool {
	if w.Kind == Shard {
		return n.Missing == 0
	}
	return n.Code >= Loaded
}

// View is a picture of the cluster that does not change while it is used. The
// caller makes it. Nodes are numbered from 0.
type View interface {
	Len() int
	// Self is the number of the caller's own node; -1: it runs no work.
	Self() int
	// Holders are the numbers of the nodes that have what w needs. The slice
	// belongs to the view.
	Holders(w *Work) []int32
	// Look writes what is known of node i, in all its fields.
	Look(w *Work, i int, n *Node)
}

// Table is a View of nodes that are listed.
type Table struct {
	Own     int // the number of the caller's own node; -1: none
	Nodes   []Node
	holders []int32
}

// Len is how many nodes are listed.
func (t *Table) Len() int { return len(t.Nodes) }

// Self is Own.
func (t *Table) Self() int { return t.Own }

// Look copies node i.
func (t *Table) Look(_ *Work, i int, n *Node) { *n = t.Nodes[i] }

// Holders looks through the list. What it returns is valid until it is called
// again.
func (t *Table) Holders(w *Work) []int32 {
	t.holders = t.holders[:0]
	for i := range t.Nodes {
		if t.Nodes[i].holds(w) {
			t.holders = append(t.holders, int32(i))
		}
	}
	return t.holders
}

var _ View = (*Table)(nil)

// Cost is what a candidate costs, in seconds.
type Cost struct {
	Hop   float64 // the way there and back
	Queue float64 // until a slot is free
	Data  float64 // until the bytes are there
	Code  float64 // until the code is ready
	Run   float64
	Ext   float64 // what the bytes delay others by
}

// Start is when the work begins.
func (c *Cost) Start() float64 { return c.Hop + max(c.Queue, c.Data, c.Code) }

// Total is when it is done.
func (c *Cost) Total() float64 { return c.Start() + c.Run + c.Ext }

// Candidate is a node that was looked at, and why it was or was not taken.
type Candidate struct {
	Index  int32 // in the view
	Own    bool  // the caller's own node
	Holder bool  // it has what the work needs
	Asked  bool  // Queue is what the node said itself
	Node   Node
	Cost   Cost
}

// Most is how many candidates there are at most.
const Most = 8

// Choice is a decision with its reasons.
type Choice struct {
	Why    [Most]Candidate
	N      int    // of Why
	Best   int    // the chosen one, in Why; -1: no node takes the work
	Ask    [2]int // in Why: who is to be asked before the choice stands; -1: nobody
	Parted bool   // only nodes that drain were left
}

// Chosen is the chosen candidate, or nil.
func (c *Choice) Chosen() *Candidate {
	if c.Best < 0 {
		return nil
	}
	return &c.Why[c.Best]
}
