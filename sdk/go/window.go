package lode

import "unsafe"

// aligned returns zeroed memory for size bytes, its start and length multiples
// of a page, as a window must lie.
func aligned(size int64) []byte {
	whole := (size + page - 1) / page * page
	b := make([]byte, whole+page)
	skip := -int64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (page - 1)
	return b[skip : skip+whole : skip+whole]
}
