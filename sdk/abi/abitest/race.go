//go:build race

package abitest

import "github.com/tetratelabs/wazero"

// config interprets under the race detector, where compiling a module takes
// minutes.
func config() wazero.RuntimeConfig { return wazero.NewRuntimeConfigInterpreter() }

// Race reports whether the race detector is on. An engine inside an engine is
// then too slow to test, and has one thread.
const Race = true
