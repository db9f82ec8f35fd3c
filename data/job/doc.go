// Package job runs code over the shards of one version of a dataset and
// merges what it answers: lode run WHAT --on DATASET.
//
// Promises:
//
//   - The version is pinned when the job is made: later puts do not change it,
//     and its blobs are among the roots of a collection while the job lives.
//   - Every shard counts once. A shard may be tried several times; the first
//     attempt that ends well wins and is the only one that is merged.
//   - Partial results are merged in a tree whose shape depends on the number
//     of shards alone, so floating point sums have the same bits in every run.
//   - A job that was accepted is durable before its id is known. One that was
//     running when the node died is resumed from its last checkpoint, or run
//     again.
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
// Durable formats:
//
//	register NAMESPACE/ID   JSON of Job
//	blob                    a result over 4 KiB: its bytes
//	blob                    a checkpoint: JSON of checkpoint
//	blob                    a partial result that a checkpoint names: its bytes
//
// Locks: Jobs.mu and run.mu are never held together; tree.mu is innermost.
package job
