package wasm

import (
	"encoding/hex"
	"fmt"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/cpu"
)

// cpuFeatures is a short digest of what the processor can do: native code is
// valid only where it is the same.
func cpuFeatures() string {
	sum := blake3.Sum256(fmt.Append(nil, cpu.X86, cpu.ARM64))
	return hex.EncodeToString(sum[:6])
}
