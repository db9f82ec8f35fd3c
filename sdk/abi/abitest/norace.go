//go:build !race

package abitest

import "github.com/tetratelabs/wazero"

func config() wazero.RuntimeConfig { return wazero.NewRuntimeConfig() }

// Race reports whether the race detector is on. An engine inside an engine is
// then too slow to test, and has one thread.
const Race = false
