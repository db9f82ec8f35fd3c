package agent

import (
	"context"
	"time"

	"lode"
	"lode/agent/journal"
)

// Catalog is what is deployed. It is asked for every call, from any goroutine,
// and answers from memory.
type Catalog interface {
	// Kind is the live revision of a kind; NotFound or Gone, with a hint.
	Kind(ns lode.Namespace, kind lode.Name) (*lode.Revision, error)
}

// Runner runs the code of kinds.
type Runner interface {
	// Run runs one turn to its end and sets what is below Answer in t. The
	// error is Crashed where the code failed, else that of an invocation.
	Run(ctx context.Context, t *Turn) error
}

// Turn is one turn for a Runner.
type Turn struct {
	Revision *lode.Revision
	Head     []lode.Pair // as in sdk/abi, section 2
	Body     []byte
	Method   string // for listings
	Turn     lode.TurnKind
	Run      lode.AgentCall // Deadline, Trace, Caller, Depth and Chain are set
	Ops      Ops
	Sandbox  uint64 // where the agent's instance is; then, where this turn ran. 0: not known
	Apart    bool   // it runs while another turn of the agent does: its instance is for nobody else

	// Lend is what a turn may use that is run within this one, while the code
	// waits for it: set by Runner before Ops are used, nil if nothing. Within is
	// what this turn may use of another one.
	Lend, Within any

	// Answer is what the code said.
	Answer lode.AgentReply
	Failed bool          // the code failed, and Answer says why
	Span   string        // traceparent of this turn
	CPU    time.Duration // that it took; 0: not known
}

// Op is an operation of a guest, by its number in sdk/abi.
type Op uint32

// The operations that belong to turns.
const (
	OpCall   Op = 1
	OpSend   Op = 2
	OpState  Op = 4
	OpTimer  Op = 5
	OpSelf   Op = 13
	OpSocket Op = 19
)

// Ops performs the operations of a turn.
type Ops interface {
	// Operate starts an operation, or reports that it is none of a turn's. It is
	// called by the goroutine that runs the code; done is called once, by any.
	Operate(ctx context.Context, op Op, req lode.Message, done func(lode.Message, error)) bool
}

// Owners says which node has which partition; agent/owner.Owners does.
type Owners interface {
	// Owner is the node that has p, as far as this one knows. It answers from
	// memory.
	Owner(p journal.Partition) (lode.NodeID, bool)
	// Ensure finds the node that has p, or is to take it.
	Ensure(ctx context.Context, p journal.Partition) (lode.NodeID, error)
	// LeaseValid reports whether nobody else can have any partition of this
	// node now.
	LeaseValid() bool
}

// Blobs keeps bytes by digest, durably before Put returns.
type Blobs interface {
	Put(ctx context.Context, b []byte) (lode.Digest, error)
	Get(ctx context.Context, d lode.Digest) ([]byte, error)
}

// Peers reaches the services of other nodes.
type Peers interface {
	// Ask has another node answer; see HandleRemote. An error that says that
	// nothing was begun has NotSent in it.
	Ask(ctx context.Context, to lode.NodeID, head, body []byte) (ahead, abody []byte, err error)
}

// Sockets brings frames to the gateways that hold WebSockets.
type Sockets interface {
	// Deliver gives frames, in order, to the gateway of a node, and says which
	// of their sockets are closed.
	Deliver(ctx context.Context, node lode.NodeID, frames []lode.SocketFrame) (gone []string, err error)
}
