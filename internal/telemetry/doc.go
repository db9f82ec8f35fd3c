// Package telemetry is what a node remembers of the invocations it ran:
// metrics, traces, log lines, and the last records for people who look.
//
// It promises to cost an invocation less than a microsecond and never to hold
// one up or fail it: what does not fit its bounded buffers, or the disk, is
// dropped and counted. Function names of all namespaces share a bounded number
// of metric series.
//
// It imports nothing of Lode, not even the vocabulary: names, ids, triggers and
// kinds of error are strings here, in the vocabulary's spelling. Prometheus and
// OpenTelemetry do not leave it. Only node may import it; services and doors
// are handed what they need of it.
//
// # Log segments
//
// DIR/logs holds segments named by the Unix milliseconds at which they began,
// 13 digits, and ".ndjson". A segment is lines of JSON (see Line) in the order
// of arrival, each ended by \n. A process never appends to another's segment.
// A last line without \n was torn by a crash and is not read. The oldest
// segments are removed as whole files when the folder is over LogBytes or they
// are older than LogAge.
//
// Lock order: none is held while another is taken.
package telemetry
