//go:build !linux

package wasm

// stepBehind does nothing where a thread cannot be put behind others and back.
func stepBehind() bool { return false }

func stepUp() {}
