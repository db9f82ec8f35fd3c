// Package replica carries blobs between nodes: Serve answers for what this
// node holds of its stores, Remote is the same of another node, over a link.
//
// It promises what store.Remote asks for: a put is verified while it is
// written and durable when it is acknowledged; one of a blob that is there
// already, whole, moves nothing. What is got is checked by who got it.
//
// Only node imports it. It knows links and stores, and nothing of datasets.
//
// # Heads, to the byte
//
// Every request's head begins with the name of the store (a node has several):
//
//	0     1  length n of the name, 1 to 32
//	1     n  the name
//
// and goes on by method. Integers are big-endian. A time is Unix nanoseconds as
// 64 bits with a sign; 0 is no time. A digest is 32 bytes. A head with more or
// fewer bytes than written here is refused as Invalid.
//
//	blob.put     digest, size (8), modified (8), flags (1): 1 a repair, 2 an
//	             offer: there is no body. The body is the content.
//	             Answer: head of state (1): 0 send it (only to an offer), 1 it is
//	             durable; size (8), modified (8).
//	blob.get     digest. Answer: head of size (8), body the content.
//	blob.have    flags (1): 1 verify. Body: 1 to 1024 times digest, modified (8).
//	             Answer: body of one byte for each, a store.Held.
//	blob.stat    digest. Answer: head of size (8), modified (8).
//	blob.delete  digest, before (8). Answer: head of one byte, 1 if a replica
//	             was removed.
//	blob.list    nothing. Answer: body of digest, size (8), modified (8), again
//	             and again.
//	blob.bad     digest. Answer: empty.
package replica
