// Package data keeps datasets: it splits what is put into shards of whole
// records, commits versions, gives the bytes out again and collects what
// nothing names any more. Jobs over datasets are in data/job, the built-in
// word counter in data/words, the merging of partial results in data/reduce.
//
// Promises:
//
//   - A version is whole or not visible. It becomes visible by one
//     compare-and-swap of the dataset's register, after every byte that it
//     names is durable. A put that is cut short, killed or out of disk leaves
//     the version before as it was.
//   - Two changes at once are both kept, one after the other.
//   - The records of all shards, in order, are the records of the input, in
//     order, whatever the shard size.
//   - What comes out is what was put, but for what is said at ParseRecords.
//
// Only node and the rooms above may import it; it imports no other service.
//
// Durable formats:
//
//	register NAMESPACE/NAME   JSON of Head
//	register -removed/N/N     JSON of removed, of a dataset that can come back
//	blob                      a manifest: JSON of lode.Manifest
//	blob                      a shard: records one after the other
//	blob                      an index: JSON of lode.FileIndex, only for files
package data
