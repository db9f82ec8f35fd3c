package invoke

import (
	"context"
	"iter"
	"time"

	"lode"
	"lode/bus"
	"lode/engine"
)

// Catalog is what is deployed. Its methods are called for every invocation,
// from any goroutine, and answer from memory.
type Catalog interface {
	// Resolve picks the revision that a call of ns/name runs: alias "" is
	// live, a number asks for that revision. rnd is uniform and chooses among
	// the targets of a weighted alias. The revision is not changed afterwards.
	// NotFound (with a hint) or Gone if there is none.
	Resolve(ns lode.Namespace, name lode.Name, alias string, rnd uint32) (*lode.Revision, error)
	// Secrets opens the named secrets. NotFound names the one that is not set.
	Secrets(ns lode.Namespace, names []string) (map[string]string, error)
	// Queue is the declared queue; NotFound if there is none.
	Queue(ns lode.Namespace, name lode.Name) (lode.Queue, error)
	// Functions yields the live revision of every function.
	Functions() iter.Seq[*lode.Revision]
	// Watch calls changed with the catalog's generation after each change,
	// from one goroutine at a time, until stop is called. stop waits for a
	// call under way.
	Watch(changed func(generation uint64)) (stop func())
}

// Runner runs invocations of one revision; engine.Pool is one.
type Runner interface {
	Invoke(ctx context.Context, inv *engine.Invocation) error
}

// Pools gives the pool of a revision. Pool is called for every invocation: it
// is a look-up; what is slow happens in Runner.Invoke.
type Pools interface {
	Pool(rev *lode.Revision) (Runner, error)
}

// Datasets serves the operation data.
type Datasets interface {
	// Show returns the JSON of a version of a dataset; version 0 is the newest.
	Show(ctx context.Context, ns lode.Namespace, name lode.Name, version int) ([]byte, error)
	// Read returns up to length bytes of a shard from an offset; fewer only at
	// the shard's end.
	Read(ctx context.Context, ns lode.Namespace, name lode.Name, version, shard int, offset, length int64) ([]byte, error)
	// Index returns the JSON lode.FileIndex of a shard of a dataset of files.
	Index(ctx context.Context, ns lode.Namespace, name lode.Name, version, shard int) ([]byte, error)
}

// Agents are the agents of the cluster, wherever they are.
type Agents interface {
	// Call has an agent do something and returns its answer.
	Call(ctx context.Context, c *lode.AgentCall) (*lode.AgentReply, error)
	// Post has it do something later: durable when it returns.
	Post(ctx context.Context, c *lode.AgentCall) (id string, err error)
}

// Table keeps small durable values; bus.Table is one, and its documentation
// holds: Create is Conflict where the key exists, Update and Delete are
// Precondition where the revision is another one.
type Table interface {
	Get(ctx context.Context, key string) (bus.Entry, bool, error)
	Put(ctx context.Context, key string, value []byte) (uint64, error)
	Create(ctx context.Context, key string, value []byte) (uint64, error)
	Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error)
	Delete(ctx context.Context, key string, rev uint64) error
	List(ctx context.Context, prefix string) ([]bus.Entry, error)
}

// Tables opens durable tables by name, making those that are new.
type Tables interface {
	Table(ctx context.Context, name string) (Table, error)
}

// BusTables are the tables of a bus.
func BusTables(b *bus.Bus) Tables { return busTables{b} }

type busTables struct{ b *bus.Bus }

func (t busTables) Table(ctx context.Context, name string) (Table, error) {
	return t.b.Table(ctx, name)
}

var (
	_ Tables = busTables{}
	_ Table  = (*bus.Table)(nil)
)

// Queues are durable work queues, named by any text; bus.Queues is one, and
// its documentation holds.
type Queues interface {
	Configure(queue string, cfg bus.QueueConfig)
	Put(ctx context.Context, items ...bus.Item) (int, error)
	Pull(ctx context.Context, queue string, n int, wait time.Duration) ([]Delivery, error)
	Get(ctx context.Context, queue, id string) (bus.Item, error)
	List(queue string, after uint64, n int) []bus.Item
	Remove(ctx context.Context, queue, id string) (bus.Item, error)
	Depth(queue string) bus.Depth
	Names() []string
}

// Delivery is an item that was pulled; bus.Delivery is one.
type Delivery interface {
	Work() *bus.Item
	Ack(ctx context.Context, then ...bus.Item) error
	Nak(ctx context.Context, delay time.Duration, note string) error
	Extend(visible time.Duration) error
}

// BusQueues are the queues of a bus.
func BusQueues(q *bus.Queues) Queues { return busQueues{q} }

type busQueues struct{ *bus.Queues }

type busDelivery struct{ *bus.Delivery }

func (d busDelivery) Work() *bus.Item { return &d.Item }

func (q busQueues) Pull(ctx context.Context, queue string, n int, wait time.Duration) ([]Delivery, error) {
	ds, err := q.Queues.Pull(ctx, queue, n, wait)
	out := make([]Delivery, len(ds))
	for i, d := range ds {
		out[i] = busDelivery{d}
	}
	return out, err
}

var (
	_ Queues   = busQueues{}
	_ Delivery = busDelivery{}
)

// Observer is told what happened. Its methods are called on the path of every
// invocation, from any goroutine: they must not block.
type Observer interface {
	// Done ends an attempt: the one metering record, the one line of log and
	// the one span of it. r is valid until Done returns.
	Done(r *Record)
	// Line is a line that the guest wrote. l is valid until Line returns.
	Line(l *Line)
}

// Record is everything about one attempt that has ended.
type Record struct {
	ID       lode.InvocationID
	Revision *lode.Revision // nil: it did not get so far
	Request  *lode.Request
	Trace    Trace // of this attempt
	Start    time.Time
	End      time.Time
	Status   int         // what the guest answered; 0 = nothing
	Err      *lode.Error // nil: the guest answered
	Usage    lode.Usage
}

// Line is one line of a guest's log.
type Line struct {
	ID       lode.InvocationID
	Revision *lode.Revision
	Trace    Trace
	Time     time.Time
	Level    int // -4 debug, 0 info, 4 warn, 8 error
	Text     []byte
}

type nobody struct{}

func (nobody) Done(*Record) {}
func (nobody) Line(*Line)   {}

var _ Observer = nobody{}
