package wasm

import "lode/engine/rewrite"

// rewriteModule is the same for all revisions: code is shared by those with
// different limits, so the memory's maximum is imposed by the allocator.
func rewriteModule(module []byte, period uint32) (*rewrite.Module, error) {
	return rewrite.Rewrite(module, rewrite.Options{Period: period})
}
