// Package agent keeps agents: named, durable objects, each with one copy in
// the cluster that takes one message at a time.
//
// The agents of a kind are spread over partitions; agent/owner says which node
// has which. The owner runs turns, one at a time for each agent, and writes
// what they changed to the node's journal (agent/journal), many turns in one
// message. Nothing that a turn says leaves the node before its entry is
// durable; the next turn may run before that. What is durable is applied to a
// local store (agent/state) that can be rebuilt from journals and snapshots.
//
//	Call -> who owns it? -> here: mailbox -> turn -> journal -> applied -> reply
//	                     -> there: link -> the same
//
// It promises: a turn takes effect wholly or not at all, and once for each id;
// turns of one agent are in one order that everybody sees; a message sent by a
// turn takes effect once, in order for each pair of agents; a timer fires once.
//
// How code is run it does not know: that is Runner, which node provides.
// Lock order: Service.mu before partition.mu. Neither is held across I/O.
package agent
