// Package catalog knows what is deployed: apps, the functions, kinds of
// agents, queues and datasets that they own, immutable revisions with their
// history, weighted aliases, routes, and sealed secrets.
//
// It promises that a change of an app is one step. A deploy switches all
// functions of the app at once or none; two changes at the same time happen
// one after the other; what was acknowledged survives kill -9, and what was
// under way is there wholly or not at all. Look-ups are answered from an
// immutable picture in memory and take no lock.
//
// It stores bytes through bus and knows artifacts only by digest: whoever
// holds them passes an [Artifacts]. The other services must not import it;
// node hands them what they declare.
//
// # How a change is made
//
// The table "catalog" has one record "head": the newest change, which is the
// whole new state of one app. To change an app is to replace head by
// compare-and-swap; that write is the commit. Afterwards the same bytes are
// copied to "app/NAMESPACE/APP", and nobody replaces head before that copy is
// there, so the state is: all app records, and head over them. The table
// "revisions" has the content of each revision under
// "NAMESPACE/NAME/DIGEST", written before the commit that names it; what no
// commit came to name stays unseen.
package catalog
