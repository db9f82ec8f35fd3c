package wasm

import (
	"bytes"
	"context"
	"encoding/binary"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"lode"
	"lode/engine/rewrite"
	"lode/sdk/abi"
)

// validated stops the engine between validating a module and compiling it.
type validated struct{}

// NewFunctionListener implements experimental.FunctionListenerFactory: the
// engine asks for listeners after it has validated all code.
func (validated) NewFunctionListener(api.FunctionDefinition) experimental.FunctionListener {
	panic(validated{})
}

var _ experimental.FunctionListenerFactory = validated{}

// validate has the engine check module as it is, before anything is changed in
// it: a module that is wrong in itself could become right, and mean something
// else, by what the rewriting pass adds.
func validate(ctx context.Context, module []byte) (err error) {
	if !bytes.HasPrefix(module, []byte("\x00asm")) {
		return lode.Errorf(lode.Invalid, "this is not a WebAssembly module").WithHint("give the .wasm file that the compiler wrote")
	}
	if len(module) >= 8 && binary.LittleEndian.Uint32(module[4:]) != 1 {
		return lode.Errorf(lode.Invalid, "this is a WebAssembly component, not a core module").WithHint("build for WASI preview 1, for example with --target wasm32-wasip1")
	}
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithCoreFeatures(api.CoreFeaturesV2).WithDebugInfoEnabled(false))
	defer rt.Close(ctx)
	defer func() {
		if r := recover(); r != nil && r != (any)(validated{}) {
			err = lode.Errorf(lode.Invalid, "the module cannot be read: %v", r)
		}
	}()
	if _, err := rt.CompileModule(experimental.WithFunctionListenerFactory(ctx, validated{}), module); err != nil {
		return lode.Errorf(lode.Invalid, "the module is not valid: %w", err).WithHint("build it again: the file is damaged, cut short, or uses what comes after WebAssembly 2.0")
	}
	return nil
}

// customName is the name in a custom section's body, or "".
func customName(body []byte) string {
	n, k := binary.Uvarint(body)
	if k <= 0 || n > uint64(len(body)-k) {
		return ""
	}
	return string(body[k : k+int(n)])
}

// The exports that have a meaning.
const (
	exportInitialize = "_initialize"
	exportStart      = "_start"
	exportInit       = "lode_init"
	exportWarm       = "lode_warm"
	exportDescribe   = "lode_describe"
	exportInvoke     = "lode_invoke"
)

// contractOf tells from compiled code how the module is spoken to.
func contractOf(b []byte) (lode.Contract, error) {
	c, err := decodeCode(b)
	if err != nil {
		return "", err
	}
	switch {
	case c.head.has(exportInvoke):
		return lode.ContractHandler, nil
	case c.head.has(exportStart):
		return lode.ContractCommand, nil
	}
	return "", lode.Errorf(lode.Invalid, "the module exports neither %s nor %s", exportInvoke, exportStart).
		WithHint("build a program, or a reactor with one of the SDKs (abi version %d)", abi.Version)
}

// checkShape refuses modules that cannot be run as they want to be.
func checkShape(h *codeHead, c lode.Contract, l lode.Limits) error {
	want := exportInvoke
	if c == lode.ContractCommand {
		want = exportStart
	}
	switch {
	case !h.has(want):
		return lode.Errorf(lode.Invalid, "the module does not export %s", want)
	case !h.Memory:
		return lode.Errorf(lode.Invalid, "the module has no memory of its own")
	case int64(h.MinPages)*rewrite.PageSize > memoryLimit(l):
		return lode.Errorf(lode.Invalid, "the module needs %d MiB of memory to begin with, its limit is %d MiB", h.MinPages/16, memoryLimit(l)>>20).
			WithHint("raise limits.memory")
	}
	return nil
}

// memoryLimit is l.Memory as the engine takes it: whole pages, 256 MiB when
// nothing is said, at most 4 GiB.
func memoryLimit(l lode.Limits) int64 {
	m := l.Memory
	if m <= 0 {
		m = 256 << 20
	}
	m = min(m, 4<<30)
	return max(m&^(rewrite.PageSize-1), rewrite.PageSize)
}
