// Package state is a node's copy, on disk, of what its agents' journals say:
// for each partition its keys and values, after the entries that were
// acknowledged. It can always be made again, from a snapshot and a journal.
//
// It promises that a change is either there whole or not, that after a crash
// the copy is what it was after some earlier message (DB.Applied says which),
// and that a snapshot which was restored is byte for byte what was saved. It
// does not promise to keep the newest changes over a crash: nothing is synced
// when it is applied, and the journal is read again from Applied on.
//
// It knows nothing of what keys and values mean, but for the blobs that values
// name (DecodeValue), which a manifest lists so that they are not swept.
//
// # Keys in the database
//
//	v                      format of this package: one byte, 1
//	a JOURNAL              u64 position up to which the journal is applied
//	m PARTITION            u64 epoch, u64 position, journal: the partition's Mark
//	d PARTITION KEY        the value
//
// PARTITION is u8 length and namespace, u8 length and kind, u16 number, big
// endian; other integers are little-endian. Nothing else is in the database.
//
// # Locks
//
// DB.mu is held while changes are applied and while a snapshot is begun or
// ended: it orders changes against the marks of what has changed. Nothing
// waits for a disk under it. health.mu is taken below it, and inside callbacks
// of the database; nothing is called with it held.
package state
