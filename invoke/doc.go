// Package invoke runs functions: it admits invocations, queues them fairly,
// hands them to a warm pool, and performs what guests ask of the host. It also
// keeps asynchronous work, its retries, results and dead letters, the cron
// clock, and the consumers of queues.
//
// What it promises. Of invocations that wait, the function that got the least
// CPU so far goes first, so a flood of one function does not starve another. A
// waiting line is bounded. Every invocation has a deadline and gives one
// Record. What Submit, PutQueue or a finished asynchronous invocation
// acknowledged is durable, and survives kill -9: work is done at least once,
// under one idempotency key at most one answer is ever told. A fetch reaches
// no address that its function's egress forbids, whatever DNS says.
//
// In a cluster (Config.Peers) an invocation runs on the node it came to where
// that has a slot and the code, else where placement finds it soonest done.
// It runs a second time only if it did not start, or if running twice does no
// harm; otherwise the loss of its node is its error. One node gives the
// Record: that which ran it.
//
// A Service is what every node has: it runs invocations, and sees to it that a
// request with an idempotency key runs once, on whatever node it comes in. A
// Keeper is what one node of a cluster has: it alone writes down asynchronous
// calls, messages and the cron clock, and works them off through its Service.
// Every Service reaches it as a Durable. A node that is alone is both.
//
// An invocation that runs can be called by its address, and form groups with
// others, on whatever node: see group.go. Nothing of that is durable.
//
// It decides nothing about what is deployed or how code runs: the catalog,
// pools, datasets and durable tables are interfaces declared in ports.go, and
// node passes the implementations. Only node and the command may import it.
//
// Lock order: calls.mu or queues.mu, then gate.mu; keys.mu and seat.mu are
// taken alone, and spread.mu before gate.mu. What is called of a port while a
// lock is held answers from memory: Catalog, and of Queues Configure, Depth and
// Delivery.Extend.
package invoke
