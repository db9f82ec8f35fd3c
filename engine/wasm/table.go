package wasm

import (
	"reflect"
	"unsafe"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"lode/engine/rewrite"
)

// tables are what the tables of a new instance hold: references to its own
// functions. The engine makes them one by one, from an expression each, and of
// those Go writes thousands: that is most of the time of making an instance.
// Here they are learned from the first instance and copied for the others.
//
// This looks into the engine's own types. Everything is checked by name, type
// and place when it is learned; what does not fit leaves the engine to its way.
type tables struct {
	funcs []funcRef // owner is nil
	spots []spot    // of funcs, one by one
}

// funcRef is the engine's functionInstance: a reference is its address.
type funcRef struct {
	code       *byte
	owner      *byte // the instance, as native code knows it
	typ, index uint32
}

type spot struct{ table, element int }

// learnTables reads the tables of a new instance that has not run yet. It
// returns nil when the instances of mod must be left to the engine.
func learnTables(h *codeHead, mod api.Module) *tables {
	owner := ownerOf(mod)
	if h.MayDirty&(rewrite.DirtyTable|rewrite.DirtyElem) != 0 || owner == nil || !refsKnown(mod) {
		return nil
	}
	t := &tables{}
	for i, refs := range refsOf(mod) {
		for j, ref := range refs {
			if ref == 0 {
				continue
			}
			f := **(**funcRef)(unsafe.Pointer(&ref))
			if f.owner != owner { // a function of the host
				return nil
			}
			f.owner = nil
			t.funcs = append(t.funcs, f)
			t.spots = append(t.spots, spot{i, j})
		}
	}
	if len(t.funcs) == 0 {
		return nil
	}
	return t
}

// fill gives a new instance its tables. What it returns must be kept as long as
// the instance: references do not keep what they refer to.
func (t *tables) fill(mod api.Module) (keep []funcRef, ok bool) {
	owner, all := ownerOf(mod), refsOf(mod)
	if owner == nil {
		return nil, false
	}
	keep = make([]funcRef, len(t.funcs))
	copy(keep, t.funcs)
	for i := range keep {
		keep[i].owner = owner
		at := t.spots[i]
		if at.table >= len(all) || at.element >= len(all[at.table]) {
			return nil, false
		}
		all[at.table][at.element] = uintptr(unsafe.Pointer(&keep[i]))
	}
	return keep, true
}

// engineOf is the engine's side of an instance, a struct, or not valid.
func engineOf(mod api.Module) reflect.Value {
	e := field(reflect.ValueOf(mod), "Engine")
	if !e.IsValid() || e.Kind() != reflect.Interface {
		return reflect.Value{}
	}
	return e.Elem()
}

// field is a field of the struct that v points to, or not valid.
func field(v reflect.Value, name string) reflect.Value {
	if !v.IsValid() || v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v.Elem().FieldByName(name)
}

func ownerOf(mod api.Module) *byte {
	p := field(engineOf(mod), "opaquePtr")
	if !p.IsValid() || p.Type() != reflect.TypeFor[*byte]() {
		return nil
	}
	return (*byte)(p.UnsafePointer())
}

// refsKnown reports whether a reference is what funcRef says.
func refsKnown(mod api.Module) bool {
	list := field(engineOf(mod), "localFunctionInstances")
	if !list.IsValid() || list.Kind() != reflect.Slice || list.Type().Elem().Kind() != reflect.Pointer {
		return false
	}
	theirs, ours := list.Type().Elem().Elem(), reflect.TypeFor[funcRef]()
	if theirs.Kind() != reflect.Struct || theirs.NumField() != ours.NumField() || theirs.Size() != ours.Size() {
		return false
	}
	for i, name := range []string{"executable", "moduleContextOpaquePtr", "typeID", "indexInModule"} {
		a, b := theirs.Field(i), ours.Field(i)
		if a.Name != name || a.Type.Kind() != b.Type.Kind() || a.Type.Size() != b.Type.Size() || a.Offset != b.Offset {
			return false
		}
	}
	return true
}

// refsOf are the references in an instance's tables, as they are.
func refsOf(mod api.Module) [][]uintptr {
	list := field(reflect.ValueOf(mod), "Tables")
	if !list.IsValid() || list.Kind() != reflect.Slice {
		return nil
	}
	all := make([][]uintptr, list.Len())
	for i := range all {
		refs := field(list.Index(i), "References")
		if !refs.IsValid() || refs.Type() != reflect.TypeFor[[]uintptr]() {
			return nil
		}
		all[i] = refs.Interface().([]uintptr)
	}
	return all
}

// dropElements takes the active element segments' content out of a compiled
// module, and reports whether that worked. No instance may be under way.
func dropElements(mod wazero.CompiledModule) bool {
	m := field(reflect.ValueOf(mod), "module")
	if !m.IsValid() || m.Kind() != reflect.Pointer {
		return false
	}
	list := field(reflect.NewAt(m.Type().Elem(), m.UnsafePointer()), "ElementSection")
	if !list.IsValid() || list.Kind() != reflect.Slice {
		return false
	}
	for i := range list.Len() {
		segment, ok := list.Index(i).Addr().Interface().(interface{ IsActive() bool })
		init := field(list.Index(i).Addr(), "Init")
		if !ok || !init.IsValid() || !init.CanSet() {
			return false
		}
		if segment.IsActive() {
			init.SetZero()
		}
	}
	return true
}
