package agent

import (
	"encoding/binary"

	"lode"
	"lode/agent/journal"
)

// Values and messages between nodes are sequences of fields: integers as
// uvarints, strings and bytes with their length before them, pairs as a count
// and so many strings twice. The first byte of each is a version.
const codecVersion = 2 // a value of state begins with 0 or 1

// enc appends fields.
type enc struct{ b []byte }

func newEnc(n int) *enc { return &enc{append(make([]byte, 0, n), codecVersion)} }

func (e *enc) u(n uint64)     { e.b = binary.AppendUvarint(e.b, n) }
func (e *enc) i(n int64)      { e.u(uint64(n)) }
func (e *enc) s(s string)     { e.b = journal.AppendString(e.b, s) }
func (e *enc) bytes(p []byte) { e.b = journal.AppendString(e.b, p) }

func (e *enc) flag(v bool) {
	if v {
		e.b = append(e.b, 1)
		return
	}
	e.b = append(e.b, 0)
}

func (e *enc) pairs(ps []lode.Pair) {
	e.u(uint64(len(ps)))
	for i := range ps {
		e.s(ps[i].Key)
		e.s(ps[i].Value)
	}
}

func (e *enc) list(ss []string) {
	e.u(uint64(len(ss)))
	for _, s := range ss {
		e.s(s)
	}
}

// dec reads what enc wrote.
type dec struct{ journal.Reader }

// newDec begins to read b.
func newDec(b []byte) *dec {
	if len(b) == 0 || b[0] != codecVersion {
		return &dec{journal.Reader{Bad: true}}
	}
	return &dec{journal.Reader{B: b[1:]}}
}

func (d *dec) u() uint64     { return d.Uvarint() }
func (d *dec) i() int64      { return int64(d.Uvarint()) }
func (d *dec) s() string     { return string(d.Bytes()) }
func (d *dec) bytes() []byte { return d.Bytes() } // a part of what is read
func (d *dec) flag() bool    { return d.Byte() != 0 }
func (d *dec) end() bool     { return d.End() }

// count is a number of things of at least one byte each.
func (d *dec) count() int {
	n := d.u()
	if n > uint64(len(d.B)) {
		d.Bad = true
		return 0
	}
	return int(n)
}

func (d *dec) pairs() []lode.Pair {
	n := d.count()
	if n == 0 {
		return nil
	}
	ps := make([]lode.Pair, 0, n)
	for range n {
		ps = append(ps, lode.Pair{Key: d.s(), Value: d.s()})
	}
	return ps
}

func (d *dec) list() []string {
	n := d.count()
	if n == 0 {
		return nil
	}
	ss := make([]string, 0, n)
	for range n {
		ss = append(ss, d.s())
	}
	return ss
}

func damaged(what string) error {
	return lode.Errorf(lode.Damaged, "%s of an agent cannot be read", what).WithHint("restore the data folder from a backup")
}
