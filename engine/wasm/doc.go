// Package wasm is the engine's driver for WebAssembly: core modules with WASI
// preview 1 and the imports of sdk/abi, on wazero.
//
// Every module goes through engine/rewrite first, so that it can be stopped,
// bounded and reset. It is compiled once. A warm snapshot of its memory is
// taken after its initialisation, and every sandbox maps that image
// copy-on-write; between two invocations the pages written are copied back,
// and a count of page faults, or a look at the page table, proves that there
// are no others (linux). Elsewhere the whole image is copied.
//
// # What is promised
//
// No byte of an invocation is there in the next one, but for Config.Reuse. A
// guest is stopped at its deadline wherever it computes. Its memory, tables,
// references, stack, files and operations are bounded. Nothing it does ends
// the process, except reading a mapped window whose file has gone bad: jobs
// belong into engine/worker.
//
// # Rules that hold this up
//
// Only the goroutine of Invoke writes guest memory: no slice of it leaves a
// host function, and none is given to a system call. That goroutine's thread
// stays locked while the guest computes; a host function that blocks gives
// the thread back, and the page table is scanned at the end. Memory is
// unmapped by Sandbox.Close alone, never by the guest's exit. After a trap, an
// exit or a kill a sandbox is never used again.
//
// Only engine, node and tests may import it.
package wasm
