//go:build !linux

package wasm

// image is the snapshot of a guest's memory.
type image struct{ b []byte }

func newImage(mem []byte) *image { return &image{b: append([]byte(nil), mem...)} }

func (img *image) close() {}

func newMemory(limit int) memory { return newHeapMemory(limit) }
