package rewrite

import (
	"lode"
)

// Defaults and bounds of Options.
const (
	defaultTable  = 1 << 16
	defaultStack  = 8 << 20
	defaultPeriod = 1 << 18
	maxTables     = 1 << 20 // elements, whatever Options say
	maxStack      = 1 << 30
	minPeriod     = 4 * chunk
	maxPeriod     = 1 << 30
)

func (o Options) filled() (Options, error) {
	def := func(v *uint32, d uint32) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.MaxTable, defaultTable)
	def(&o.MaxStack, defaultStack)
	def(&o.Period, defaultPeriod)
	if o.MaxMemory == 0 {
		o.MaxMemory = 1 << 32
	}
	switch {
	case o.MaxTable > maxTables:
		return o, lode.Errorf(lode.Invalid, "a limit of %d table elements; at most %d", o.MaxTable, maxTables)
	case o.MaxStack > maxStack:
		return o, lode.Errorf(lode.Invalid, "a stack limit of %d bytes; at most %d", o.MaxStack, maxStack)
	case o.Period < minPeriod || o.Period > maxPeriod:
		return o, lode.Errorf(lode.Invalid, "a period of %d units; between %d and %d", o.Period, minPeriod, maxPeriod)
	}
	return o, nil
}

// Rewrite makes a guest's module ready for the driver; see the package
// comment. The module must be one that the engine has validated. Errors are
// *lode.Error of kind Invalid and name the section, the function and the byte.
// The result shares memory with wasm where its fields say so.
func Rewrite(wasm []byte, o Options) (*Module, error) {
	o, err := o.filled()
	if err != nil {
		return nil, err
	}
	s, err := parse(wasm)
	if err != nil {
		return nil, err
	}
	m := &Module{HasStart: s.start >= 0, Custom: s.custom, Imports: s.imports}
	if err := m.bound(s, o); err != nil {
		return nil, err
	}
	v, err := look(s)
	if err != nil {
		return nil, err
	}
	plans, err := charge(s, v)
	if err != nil {
		return nil, err
	}
	m.describe(s, v)
	w := newWriter(s, v, plans, o, m)
	m.Wasm = w.write()
	m.Stats = w.e.stats
	m.Stats.Functions = len(s.funcs)
	return m, nil
}

// bound applies the limits to memory, data and tables.
func (m *Module) bound(s *source, o Options) error {
	r := &reader{at: "memory section"}
	pages := uint32(min(o.MaxMemory/PageSize, 1<<16))
	if s.memory.MinPages > pages {
		r.refuse(0, "raise the function's memory limit", "starts with %d MiB of memory; the limit is %d MiB", s.memory.MinPages/16, pages/16)
		return r.err
	}
	s.memory.MaxPages = min(s.memory.MaxPages, pages)
	m.Memory = s.memory
	r.at = "data section"
	for i, d := range s.data {
		if d.passive {
			continue
		}
		if d.offset.op != opI32Const {
			r.fail(d.offset.lo, "the offset of segment %d is not an i32 constant", i)
			return r.err
		}
		offset := uint32(d.offset.value)
		if !s.memory.Present || uint64(offset)+uint64(len(d.bytes)) > uint64(s.memory.MinPages)*PageSize {
			r.fail(d.offset.lo, "segment %d, %d bytes at %#x, is outside the memory", i, len(d.bytes), offset)
			return r.err
		}
		m.Data = append(m.Data, Segment{offset, d.bytes})
	}
	return s.boundTables(o.MaxTable)
}

// boundTables shares what tables may still grow evenly among them.
func (s *source) boundTables(limit uint32) error {
	r := &reader{at: "table section"}
	var sum uint64
	for _, t := range s.tables {
		sum += uint64(t.min)
	}
	if sum > uint64(limit) || len(s.tables) > 1024 {
		r.refuse(0, "fewer functions behind pointers, or a higher limit", "%d tables start with %d elements; at most %d", len(s.tables), sum, limit)
		return r.err
	}
	for i := range s.tables {
		t := &s.tables[i]
		share := t.min + (limit-uint32(sum))/uint32(len(s.tables))
		if !t.hasMax || t.max > share {
			t.hasMax, t.max = true, share
		}
	}
	return nil
}

// describe fills in what the host is told.
func (m *Module) describe(s *source, v *survey) {
	var refs bool
	m.Globals, m.Slots, refs = s.mutableSlots()
	switch {
	case refs:
		m.Fresh = "a mutable global holds a reference"
	case m.Slots > MaxSlots:
		m.Fresh = "too many mutable globals"
	}
	m.FreshOnly = m.Fresh != ""
	m.MayDirty = v.dirty
	m.Features = v.features
	for _, x := range s.exports {
		e := Export{Name: x.name, Kind: x.kind}
		if x.kind == ExportKindFunc {
			t, _ := s.typeOf(x.index)
			e.Type = s.types[t]
		}
		m.Exports = append(m.Exports, e)
	}
}
