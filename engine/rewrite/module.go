package rewrite

// Version is the number of what the pass makes: equal inputs and Options give
// equal modules under equal numbers. Whoever changes the output counts it up;
// compiled code of other versions is not used.
const Version = 1

// Names that belong to the pass; guests may not use them.
const (
	HostModule     = "lode_sys" // import module of what the pass adds
	YieldFunc      = "yield"    // (i32) -> ()
	ReservedPrefix = "lode:"    // of exports and of import modules
	ExportMemory   = "lode:memory"
	ExportReset    = "lode:reset"
	ExportGlobals  = "lode:globals"
	ExportDirty    = "lode:dirty"
	ExportFuel     = "lode:fuel"
	ExportStart    = "lode:start"
	// CustomPrefix begins the names of custom sections that are handed out in
	// Module.Custom.
	CustomPrefix = "lode."
)

// Reasons given to lode_sys.yield.
const (
	YieldFuel  = 0
	YieldStack = 1
)

// Flags of lode:dirty and lode:reset.
const (
	DirtyTable = 1 << iota
	DirtyElem
	DirtyData
)

// MaxSlots is the number of words of mutable globals above which a module is
// FreshOnly.
const MaxSlots = 512

// PageSize is the size of a WebAssembly page in bytes.
const PageSize = 1 << 16

// Options bound the guest. The zero value works.
type Options struct {
	// MaxTable is the number of elements of all tables together, 8 bytes each
	// in the host. Zero: 1<<16. A module that starts with more is refused;
	// table.grow beyond it answers -1.
	MaxTable uint32
	// MaxStack bounds the stack of nested calls, in bytes as the pass
	// estimates them from above. Zero: 8 MiB. More lets guests recurse deeper
	// and lets each sandbox keep as much memory in the host.
	MaxStack uint32
	// Period is the number of weighted units, about one machine instruction
	// each, between yields. Zero: 1<<18. Less stops guests sooner and costs
	// more.
	Period uint32
	// MaxMemory bounds the linear memory in bytes, rounded down to pages.
	// Zero: 4 GiB. A module that starts with more is refused; memory.grow
	// beyond it answers -1.
	MaxMemory uint64
}

// Module is a rewritten module and what the host must know of it.
type Module struct {
	Wasm []byte // the module to compile
	// Data are the active data segments of the original, in order; their
	// Bytes share memory with the input.
	Data []Segment
	// HasStart: the original's start function is exported as lode:start.
	HasStart bool
	// Custom are the original's custom sections whose name begins with
	// CustomPrefix; of two with one name the first. They share memory with the
	// input.
	Custom    map[string][]byte
	Globals   []Global // the original's mutable globals, in order of index
	Slots     int      // words of lode:globals and lode:reset
	FreshOnly bool     // no reset: a new instance for each invocation
	Fresh     string   // why FreshOnly, for people; else empty
	// MayDirty are the dirty flags that some instruction of the module can
	// raise; 0 means that lode:dirty always answers 0.
	MayDirty int
	Memory   Memory
	Imports  []Import // functions the guest asks for; without lode_sys
	Exports  []Export // of the original
	Features Features
	Stats    Stats
}

// Segment is bytes to write into memory before anything runs.
type Segment struct {
	Offset uint32
	Bytes  []byte
}

// Memory is the guest's linear memory.
type Memory struct {
	Present  bool
	MinPages uint32
	MaxPages uint32 // as rewritten: the smaller of the original's and MaxMemory
	Exported bool   // by the guest itself, under any name
}

// ValType is a value type, by its code in the binary format.
type ValType byte

// The value types.
const (
	I32       ValType = 0x7f
	I64       ValType = 0x7e
	F32       ValType = 0x7d
	F64       ValType = 0x7c
	V128      ValType = 0x7b
	FuncRef   ValType = 0x70
	ExternRef ValType = 0x6f
)

// FuncType is the type of a function.
type FuncType struct {
	Params, Results []ValType
}

// Import is a function that the guest asks the host for.
type Import struct {
	Module, Name string
	Type         FuncType
}

// ExportKind says what an export is, by its code in the binary format.
type ExportKind byte

// The kinds of exports.
const (
	ExportKindFunc ExportKind = iota
	ExportKindTable
	ExportKindMemory
	ExportKindGlobal
)

// Export is something the guest offers.
type Export struct {
	Name string
	Kind ExportKind
	Type FuncType // of functions only
}

// Global is a mutable global of the original.
type Global struct {
	Index uint32
	Type  ValType
	Slot  int // its first word in lode:globals; -1 for references
}

// Features are what the module's code uses beyond the first version of
// WebAssembly, for the cost model and for people.
type Features struct {
	SIMD, Bulk, RefTypes, SatFloat, SignExt, MultiValue bool
}

// Stats say what the pass did.
type Stats struct {
	Functions int // defined by the guest
	Checks    int // of fuel
	Guarded   int // functions whose calls count towards MaxStack
	Split     int // bulk instructions turned into calls
}
