// Package job runs code over the shards of one version of a dataset and
// merges what it answers: lode run WHAT --on DATASET. Jobs, on one node of a
// cluster, says who works on what; an Executor on each node works.
//
// Promises:
//
//   - The version is pinned when the job is made: later puts do not change it,
//     and its blobs are among the roots of a collection while the job lives.
//   - Every shard counts once. A shard may be tried several times, also on
//     several nodes at once; the first attempt that ends well wins and is the
//     only one that is merged.
//   - Partial results are merged in a tree whose shape depends on the number
//     of shards alone, on the node where they are made and then here, so
//     floating point sums have the same bits in every run, whoever did what.
//   - A node that is lost costs a retry of the groups of shards that it had. One
//     that drains ends its groups and gets no others.
//   - A job that was accepted is durable before its id is known. One that was
//     running when its Jobs died is resumed from its last checkpoint, or run
//     again, by the Jobs that are opened next, on any node. The first ones, if
//     they were only paused, change nothing of it any more.
//   - What a job says that it moved is what was moved, of lost nodes as far as
//     they told. Manifests, code and results are not in it.
//
// Code runs behind the Runner interface, which node implements with worker
// processes; only the built-in word count runs here, over a mapping whose
// faults are caught. Only node and the rooms above may import this package.
//
// The states, as lode.State:
//
//	queued -> running -> done
//	   |         |-----> failed
//	   |---------|-----> cancelled
//
// A group of shards goes
//
//	waiting -> flying -> won -> merged
//	   ^         |
//	   |---------|  its node was lost, or failed it; a slow one flies twice
//
// Durable formats:
//
//	register NAMESPACE/ID   JSON of Job
//	register -coordinator   the name of the Jobs that were opened last
//	blob                    a result over 4 KiB: its bytes
//	blob                    a checkpoint: JSON of checkpoint
//	blob                    a partial result that a checkpoint names, packed as
//	                        data/reduce says
//
// Locks: Jobs.mu and run.mu are never held together; tree.mu and turns.mu are
// innermost.
package job
