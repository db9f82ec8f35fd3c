// Package words is the built-in word count of jobs: a native splitter and
// counter, and the calling of a guest that says which of the distinct words
// to keep. A guest so sees each word once, not each occurrence.
//
// A word is a run of bytes between ASCII white space (tab, newline, vertical
// tab, form feed, carriage return, space), as in lode.Counts of the SDKs.
//
// Promises: counts are exact, and the order of words is that of first sight,
// so that a rerun gives the same bytes. It has no I/O and knows no job.
package words

import (
	"encoding/binary"
	"math/bits"
	"strconv"
	"unicode/utf8"

	"lode"
	"lode/data/tally"
)

// ContentType is the media type of Counts.Encode.
const ContentType = "application/vnd.lode.words"

// Counts are words and how often each was seen. The zero value is empty and
// ready. It is for one goroutine at a time.
type Counts struct {
	table  tally.Table
	counts []uint64 // by the table's number
}

// Count counts the words of a shard, or of any bytes. b is not kept.
func Count(b []byte) *Counts {
	c := new(Counts)
	c.Add(b)
	return c
}

const (
	ones = 0x0101010101010101
	high = 0x8080808080808080
)

// spaces sets the high bit of each byte of w that is white space.
func spaces(w uint64) uint64 {
	low := w &^ high
	from9 := low + (128-9)*ones // high bit: 9 or more
	from14 := low + (128-14)*ones
	no32 := (low ^ ' '*ones) + 127*ones // high bit: no space
	return (from9&^from14 | ^no32) &^ w & high
}

// Add counts the words of b, which is not kept. A word that goes over the end
// of b is not joined with what the next Add brings.
func (c *Counts) Add(b []byte) {
	i := 0
	for i+8 <= len(b) {
		w := binary.LittleEndian.Uint64(b[i:])
		s := spaces(w)
		if s&0x80 != 0 { // skip the spaces in front
			i += bits.TrailingZeros64(^s&high) / 8 // 8 where all are
			continue
		}
		if s != 0 { // a word of 1 to 7 bytes, and the space behind it
			n := bits.TrailingZeros64(s) / 8
			c.add(c.table.Short(w&(1<<(8*n)-1), b[i:i+n]))
			i += n + 1
			continue
		}
		n := 8 + wordEnd(b[i+8:])
		key := b[i : i+n]
		if n == 8 {
			c.add(c.table.Short(w, key))
		} else {
			c.add(c.table.Long(w, tally.Hash(key), key))
		}
		i += n + 1
	}
	for i < len(b) {
		n := wordEnd(b[i:])
		if n > 0 {
			c.add(c.table.Number(b[i : i+n]))
		}
		i += n + 1
	}
}

// wordEnd is the bytes before the first white space.
func wordEnd(b []byte) int {
	i := 0
	for ; i+8 <= len(b); i += 8 {
		if s := spaces(binary.LittleEndian.Uint64(b[i:])); s != 0 {
			return i + bits.TrailingZeros64(s)/8
		}
	}
	for ; i < len(b); i++ {
		if x := b[i]; x == ' ' || x-'\t' < 5 {
			break
		}
	}
	return i
}

func (c *Counts) add(number int) { c.addN(number, 1) }

func (c *Counts) addN(number int, n uint64) {
	if number == len(c.counts) {
		c.counts = append(c.counts, n)
		return
	}
	c.counts[number] += n
}

// Len is the number of distinct words.
func (c *Counts) Len() int { return len(c.counts) }

// Word returns distinct word number i, in order of first sight, and its count.
// The bytes must not be written.
func (c *Counts) Word(i int) ([]byte, uint64) { return c.table.Key(i), c.counts[i] }

// Of returns the count of a word.
func (c *Counts) Of(word string) uint64 {
	if i, ok := c.table.Lookup([]byte(word)); ok {
		return c.counts[i]
	}
	return 0
}

// Total is the number of words, repeats included.
func (c *Counts) Total() (n uint64) {
	for _, k := range c.counts {
		n += k
	}
	return n
}

// Merge adds right, the counts of what comes behind, and returns the sum in
// one of the two; neither is used again by the caller.
func (c *Counts) Merge(right *Counts) *Counts {
	if right.Len() > 2*c.Len() {
		return right.Merge(c)
	}
	for i, n := range right.counts {
		c.addN(c.table.Number(right.table.Key(i)), n)
	}
	return c
}

// Keep drops the words whose place in keep is false.
func (c *Counts) Keep(keep []bool) *Counts {
	out := new(Counts)
	for i, k := range keep {
		if k {
			out.addN(out.table.Number(c.table.Key(i)), c.counts[i])
		}
	}
	return out
}

// Encode writes the partial result, to the byte:
//
//	for each word, in order of first sight: uvarint count, at least 1;
//	uvarint length, at least 1; the word
func (c *Counts) Encode() []byte {
	out := make([]byte, 0, 16*len(c.counts))
	for i, n := range c.counts {
		key := c.table.Key(i)
		out = binary.AppendUvarint(out, n)
		out = binary.AppendUvarint(out, uint64(len(key)))
		out = append(out, key...)
	}
	return out
}

// Decode reads what Encode wrote. Bytes that it did not write are Invalid.
func Decode(b []byte) (*Counts, error) {
	c := new(Counts)
	for total := len(b); len(b) > 0; {
		n, k := binary.Uvarint(b)
		size, l := binary.Uvarint(b[max(k, 0):])
		if k <= 0 || l <= 0 || n == 0 || size == 0 || size > uint64(len(b)-k-l) {
			return nil, lode.Errorf(lode.Invalid, "a partial word count breaks off at byte %d of %d", total-len(b), total)
		}
		b = b[k+l:]
		c.addN(c.table.Number(b[:size]), n)
		b = b[size:]
	}
	return c, nil
}

// JSON writes an object of the counts, sorted by word. Bytes that are not
// UTF-8 become U+FFFD; words that are then the same are counted together.
func (c *Counts) JSON() []byte {
	c = c.valid()
	size := 2
	for i := range c.counts {
		size += len(c.table.Key(i)) + 8
	}
	out := append(make([]byte, 0, size), '{')
	for at, i := range c.table.Sorted() {
		if at > 0 {
			out = append(out, ',')
		}
		out = tally.AppendString(out, c.table.Key(int(i)))
		out = append(out, ':')
		out = strconv.AppendUint(out, c.counts[i], 10)
	}
	return append(out, '}')
}

// valid returns c, or a copy whose words are UTF-8 if some are not.
func (c *Counts) valid() *Counts {
	if !c.anyInvalid() {
		return c
	}
	out := new(Counts)
	for i, n := range c.counts {
		out.addN(out.table.Number(tally.ValidUTF8(c.table.Key(i))), n)
	}
	return out
}

func (c *Counts) anyInvalid() bool {
	for i := range c.counts {
		if !utf8.Valid(c.table.Key(i)) {
			return true
		}
	}
	return false
}
