// Package enginetest holds what every driver of engine must pass: clean
// sandboxes, guests that cannot stop or flood the node, operations, and
// windows. Run is the suite; the guests, in C and Go, are built when a test
// needs them and kept in the user's cache.
//
// Only tests may import it.
package enginetest
