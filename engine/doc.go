// Package engine runs artifacts in clean sandboxes.
//
// A Pool is what others use: it keeps warm sandboxes of one revision, grows
// with load, shrinks to zero, and hands every invocation a sandbox in which
// no byte of an earlier one survives. What runs inside is behind the Driver
// seam: engine/wasm for WebAssembly, engine/worker for the same in a process of
// its own. Every driver passes engine/enginetest.
//
// The engine decides nothing about who may run or when: that is invoke's. It
// imports no service, and only node, invoke and the command may import it.
package engine
