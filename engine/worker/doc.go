// Package worker runs another driver's sandboxes in processes of their own,
// one for each namespace: what ends a process, such as a mapped file that has
// gone bad, ends that one and not the node. Jobs run in it.
//
// New makes the driver that the node uses: it compiles with the inner driver
// in this process, and starts `Command` for what runs guests. Main is the
// other side, what Command has to run. Between them go frames on the worker's
// standard input and output, see frame.go; operations, log lines, answers and
// the CPU slot are passed back, so that an invocation cannot tell.
//
// A worker that ends fails the invocations under way in it and is started
// again for the next one. It ends by itself when its input does. Closing a
// namespace's last program ends its worker.
//
// Only node, cmd and tests may import it.
package worker
