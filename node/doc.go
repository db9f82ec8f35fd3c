// Package node puts a Lode node together: it opens the rooms in order, gives
// each the interfaces that it declared, opens the doors, and takes everything
// apart in reverse.
//
// It decides nothing: a rule about functions, data or invocations belongs to
// the room of that noun. What is here besides the order is adapters (the
// api.Backend, one file a noun), the data folder with its lock, and tokens.
// Only the command, benches and tests import it.
//
// A node promises that Open returns with every door open and everything
// acknowledged before in place, and that Close, or a kill at any moment, loses
// nothing acknowledged.
package node
