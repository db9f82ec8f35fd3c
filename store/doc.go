// Package store keeps bytes: blobs, named by the BLAKE3-256 of their content.
//
// A blob has one durable home, a directory (Dir), the nodes of a cluster
// (Replicas) or an S3-compatible bucket (S3), behind the driver interface Home.
// Store is the concrete type outside: it writes, hashes, verifies, caches and
// counts once for every home. What of the home is on this machine is used in
// place and no copy is made; of the rest a node cache holds copies under a byte
// budget, fetched from other nodes (Peers) before a bucket is asked.
//
// Other nodes are behind the interface Remote, and see of this one its Shelf.
// The package knows no network: data/replica carries one to the other.
//
// Promises:
//
//   - A blob that was acknowledged survives kill -9 and power loss; one that
//     was not acknowledged is not visible. There is nothing in between.
//   - A blob is a whole local file once opened. It is never truncated or
//     changed in place, so it may be mapped; it is not evicted while open.
//   - Nothing is handed out unverified: the checksum is computed once for each
//     fetch, and once for a file that this process has not seen yet.
//   - Damage is reported as lode.Damaged with digest and place, never as
//     short or wrong bytes. A full disk is lode.Full.
//
// Locks: a digest's key lock first, then Shelf.mu, then Store.mu, then those of
// graves and tree; none but the key lock is held over I/O on a blob's content,
// and none over a call to another node but that and a pass of Repair.
//
// Pointers that change (the newest manifest of a dataset, an alias) are not
// here: they are registers of bus.
//
// Layout of a directory, home and cache alike, to the byte:
//
//	blobs/ab/abcd...   a blob: 64 lower-case hexadecimal digits, in a folder
//	                   named by the first two; plain content, mode 0444
//	tmp/w-*            being written; locked (flock) by its writer for as long
//	                   as it lives, so an unlocked one is a leftover
//	bad/<hex>.<nanos>  cache and replicas: a copy that did not match its name
//	graves             replicas: deletions that are remembered; see graveSize
//
// A replica's file time is its Modified, the same on every node that has it:
// puts and deletions are ordered by it.
//
// Layout of a bucket: <prefix>blobs/<hex>, plain content.
package store
