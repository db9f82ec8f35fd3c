// Package bus keeps a node's control state and its durable queues: an embedded
// NATS server behind Lode's own words.
//
// It offers four things. A [Table] is a watched key-value map with
// compare-and-swap. A [Lease] is exclusive use of a name for a while, with an
// epoch that only grows. A [Log] is an append log with one writer, fenced by
// its tail. [Queues] are durable work queues that share one packed log.
//
// What it promises: a write is on the disk (fsync) before it is acknowledged,
// and survives kill -9 and loss of power. Safety rests on conditional writes
// only; a read may be old, and nothing here treats one as proof. Errors are
// *lode.Error: Precondition and Conflict for a lost compare-and-swap, Full for
// a full disk or store, Unavailable where the outcome is not known and the
// same call may be made again, Damaged for bytes that do not match their
// checksum or a chain with a hole.
//
// One node keeps the bus alone, or 1, 3 or 5 members keep it and every other
// node uses it as a client, through any member ([Bus.ServeClient]). Which ones
// is the [Layout]; [Bus.Move] changes it and keeps everything. Tables, watches,
// logs, queues and leases go on over a move, a lost connection and the loss of
// a minority. With a [Remote] a cluster outside keeps the bus, and no server
// runs here.
//
// Only this package imports NATS; its nouns appear in names.go and in the
// bodies of this package, never in an exported name. A node alone has no
// listener at all: connections are in process. Members listen for each other
// with mutual TLS. Bulk data and hot calls do not pass through it.
//
// Lock order: Bus.busy, Bus.switching, Bus.mu. Queues.mu is never held while a
// Log or a Table is called, plug.mu not while another node is asked.
package bus
