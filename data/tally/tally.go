// Package tally numbers byte strings: a hash table that gives each distinct
// key the next number, for counters that see millions of short keys. It is
// what data/words and data/reduce count with.
//
// Promises: numbers are dense and in order of first sight; keys are copied
// once, so that what they were read from may go away. A Table is for one
// goroutine at a time.
package tally

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// Table maps keys to numbers 0, 1, 2 ... The zero value is empty and ready.
type Table struct {
	slots   []uint32 // number + 1 of the entry; 0 is free; a power of two of them
	entries []entry
	arena   []byte // the keys' bytes, one behind the other
}

type entry struct {
	head uint64 // the key's first 8 bytes, little endian, zero behind its end
	off  uint64 // of the key in arena
	hash uint32
	size uint32
}

// Len is the number of keys.
func (t *Table) Len() int { return len(t.entries) }

// Key returns key number i. It must not be written.
func (t *Table) Key(i int) []byte {
	e := &t.entries[i]
	return t.arena[e.off : e.off+uint64(e.size) : e.off+uint64(e.size)]
}

// Head is the first 8 bytes of key number i, big endian and zero behind its
// end: heads that differ are in the order of their keys.
func (t *Table) Head(i int) uint64 { return bits.ReverseBytes64(t.entries[i].head) }

// Number returns the number of key, a new one if it was not seen before.
func (t *Table) Number(key []byte) int {
	if len(key) <= 8 {
		return t.Short(Load(key), key)
	}
	return t.Long(binary.LittleEndian.Uint64(key), Hash(key), key)
}

// Lookup returns the number of key if it was seen before.
func (t *Table) Lookup(key []byte) (int, bool) {
	if len(t.slots) == 0 {
		return 0, false
	}
	var head uint64
	var h uint32
	if len(key) <= 8 {
		head = Load(key)
		h = mix(head, len(key))
	} else {
		head, h = binary.LittleEndian.Uint64(key), Hash(key)
	}
	mask := uint32(len(t.slots) - 1)
	for at := h & mask; ; at = (at + 1) & mask {
		n := t.slots[at]
		if n == 0 {
			return 0, false
		}
		e := &t.entries[n-1]
		if e.hash == h && e.head == head && int(e.size) == len(key) && (len(key) <= 8 || bytes.Equal(t.tail(e), key[8:])) {
			return int(n - 1), true
		}
	}
}

// Short is Number for a key of at most 8 bytes whose head (Load) is known.
func (t *Table) Short(head uint64, key []byte) int {
	if 4*len(t.entries) >= 3*len(t.slots) {
		t.grow()
	}
	h := mix(head, len(key))
	mask := uint32(len(t.slots) - 1)
	for at := h & mask; ; at = (at + 1) & mask {
		n := t.slots[at]
		if n == 0 {
			return t.insert(at, head, h, key)
		}
		if e := &t.entries[n-1]; e.head == head && int(e.size) == len(key) {
			return int(n - 1)
		}
	}
}

// Long is Number for a key of more than 8 bytes whose head and Hash are known.
func (t *Table) Long(head uint64, h uint32, key []byte) int {
	if 4*len(t.entries) >= 3*len(t.slots) {
		t.grow()
	}
	mask := uint32(len(t.slots) - 1)
	for at := h & mask; ; at = (at + 1) & mask {
		n := t.slots[at]
		if n == 0 {
			return t.insert(at, head, h, key)
		}
		e := &t.entries[n-1]
		if e.hash == h && e.head == head && int(e.size) == len(key) && bytes.Equal(t.tail(e), key[8:]) {
			return int(n - 1)
		}
	}
}

func (t *Table) tail(e *entry) []byte { return t.arena[e.off+8 : e.off+uint64(e.size)] }

func (t *Table) insert(at uint32, head uint64, h uint32, key []byte) int {
	t.entries = append(t.entries, entry{head, uint64(len(t.arena)), h, uint32(len(key))})
	t.arena = append(t.arena, key...)
	t.slots[at] = uint32(len(t.entries))
	return len(t.entries) - 1
}

func (t *Table) grow() {
	t.slots = make([]uint32, max(1024, 2*len(t.slots)))
	mask := uint32(len(t.slots) - 1)
	for i := range t.entries {
		at := t.entries[i].hash & mask
		for t.slots[at] != 0 {
			at = (at + 1) & mask
		}
		t.slots[at] = uint32(i + 1)
	}
}

// Load is the head of a key of at most 8 bytes.
func Load(key []byte) (head uint64) {
	for i := len(key) - 1; i >= 0; i-- {
		head = head<<8 | uint64(key[i])
	}
	return head
}

// Constants with well-mixed bits: the golden ratio's and a prime's.
const (
	k0 = 0x9e3779b97f4a7c15
	k1 = 0xd6e8feb86659fd93
)

// fold multiplies to 128 bits and folds the halves together.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// mix hashes a key of at most 8 bytes. Hash hashes a longer one.
func mix(head uint64, size int) uint32 {
	h := fold(head^k0, k1+uint64(size)*k0)
	return uint32(h ^ h>>32)
}

// Hash is the hash of a key of more than 8 bytes.
func Hash(key []byte) uint32 {
	h := uint64(k1) ^ uint64(len(key))
	b := key
	for ; len(b) >= 8; b = b[8:] {
		h = fold(h^binary.LittleEndian.Uint64(b), k0)
	}
	if len(b) > 0 { // the last 8 bytes, some of them a second time
		h = fold(h^binary.LittleEndian.Uint64(key[len(key)-8:]), k1)
	}
	return uint32(h ^ h>>32)
}
