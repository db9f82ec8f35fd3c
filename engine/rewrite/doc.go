// Package rewrite is the pass that every guest module goes through before it
// is compiled: it makes a WebAssembly module interruptible, bounded and
// resettable, and takes out of it what the host has to do itself so that one
// compilation serves every instance.
//
// It is pure: bytes in, bytes out, no I/O, no clock, no engine. It promises
// never to panic and to end in time and memory linear in its input, whatever
// the input is. It does not validate: call it only on modules that the engine
// itself has validated. Everything it does not know it refuses by name. It
// belongs to engine and its drivers; no other room may import it.
//
// # What the driver gets
//
// The module returned has the original's functions, globals, tables and
// exports, with the same names and meaning. Different are:
//
//   - one more import, the last of the function imports:
//     module "lode_sys", name "yield", type (i32) -> ().
//   - no start function, no active data segment (each one leaves an empty
//     passive one, so that indices stay, where code names segments; elsewhere
//     no segment is left), no custom section but "name".
//   - the limits of memory and tables are those of Options.
//   - exports whose names begin with "lode:", below. A guest that imports from
//     "lode_sys" or a name beginning with "lode:", or exports such a name, is
//     refused.
//
// # lode_sys.yield(reason i32)
//
// Reason 0, [YieldFuel]: the guest has used up one Period. The host lets the
// Go runtime in (any Go function call is enough), looks at the kill flag, and
// returns to go on or panics to stop the guest. The counter has been refilled
// before the call. Reason 1, [YieldStack]: the guest's calls are nested too
// deeply; the host must panic (if it returns, the guest traps as by
// unreachable). The function must not call back into the guest.
//
// # Exports added
//
//	lode:memory   memory                the guest's memory; absent when it has none
//	lode:reset    (i64 x Slots) -> i32  sets every mutable global to the given slots, refills
//	                                    the fuel, empties the stack counter, clears the dirty
//	                                    flags and returns what they were. Absent when FreshOnly
//	lode:globals  () -> (i64 x Slots)   reads every mutable global, in the form that
//	                                    lode:reset takes. Absent when FreshOnly
//	lode:dirty    () -> i32             the dirty flags. Always there
//	lode:fuel     () -> i32             weighted units left until the next yield, so that
//	                                    periods*Period - fuel meters what ran. Always there
//	lode:start    () -> ()              the original's start function. Only when HasStart
//
// Slots are raw 64-bit words: i32 and f32 in the low half with zeros above,
// i64 and f64 as they are, v128 as two words, low half first. Hand them from
// one call to another without looking at them: with wazero both calls are one
// CallWithStack on a slice of max(Slots, 1) words, read by lode:globals and
// copied before each lode:reset, which leaves its answer in word 0.
// They belong to the compiled module, not to an instance: slots read in one
// instance after its warm-up reset every other instance of it.
//
// The dirty flags: [DirtyTable] after table.set, table.grow, table.fill,
// table.copy or table.init; [DirtyElem] after elem.drop; [DirtyData] after
// data.drop. A sandbox whose flags are not zero after a call is discarded.
// Flags raised while the image is made (in start, _initialize, warm-up) mean
// that the image cannot be mapped into another instance: read lode:dirty
// before taking it, and use fresh instances if it is not zero.
//
// A module is FreshOnly when reset cannot work for it: a mutable global of
// reference type (references belong to one instance) or more than MaxSlots
// words of mutable globals. Memory growth and traps are the host's to notice:
// after a trap, an exit or a panic in a host call the counters are not right
// and the sandbox must be discarded.
//
// # What it costs
//
// A check is charged, in advance, the longest way through the code to the next
// check, so that no guest runs more than Period plus a few thousand units
// unasked, whatever it is made of. C code pays 0 to 20 % (a function that does
// nothing but call itself, 50 %); Go code gets 5 to 10 % faster, because the
// forward jumps of its dispatch loops no longer go through a table. What a
// unit takes depends on the machine and on the code: 2^18 of them were 5 to
// 60 microseconds. What touches memory for the first time takes longer, by the
// page faults.
//
// MaxStack counts an estimate of the engine's stack frames, from above for
// what compilers emit; the engine's own limit stands behind it. Loops nested
// more than 256 deep are refused, and so are more than 65,536 locals in a
// function; the time that the engine takes to compile is the driver's to bound.
//
// # Order of instantiation
//
// Compile Module.Wasm once, with a host module "lode_sys" that exports yield.
// For the first instance: instantiate without start functions, write Data into
// lode:memory in order (the pass has checked that all of it fits into the
// memory's first MinPages), call lode:start if HasStart, then _initialize or
// _start, warm up, read lode:dirty, lode:globals and the memory: that is the
// image. For every other: instantiate, map the image, call lode:reset.
package rewrite
