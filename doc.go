// Package lode is the vocabulary of Lode: names, addresses, digests,
// revisions, invocations, datasets and the kinds of error, as every room
// speaks of them.
//
// It holds data and the laws of that data: no service, no I/O, no clock, and
// nothing outside the standard library. Every room may import it; it imports
// none of them.
package lode
