// Package placement decides where work runs: invocations of functions, and
// groups of a dataset's shards. One cost, in seconds until the work is done,
// is compared over a few candidates:
//
//	start = hop + max(queue, data, code)      bytes travel while the queue moves
//	cost  = start + run + ext
//
// The candidates are the caller's own node, two nodes at random among those
// that have what the work needs (all of them when they are four or fewer), and
// one at random that lacks it: as many on a thousand nodes as on three. The
// best of all nodes on a picture that is 200 ms old is what every gateway
// would find at once, and the herd that follows is worse than chance. What
// bounds the damage of a wrong picture is that two candidates are asked where
// a question is cheap beside the work, and that a node may say no.
//
// Partitions of agents stay where they are, and move where that pays; see
// Rebalance.
//
// What it promises: it has no clock, no I/O, no goroutine and no state but
// what the caller holds, and Place does not allocate. Equal arguments give
// equal decisions; all chance comes from Work.Seed. It knows the vocabulary
// alone. Services import it; it imports no room but lode.
package placement
