package build

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"lode"
	"lode/sdk"
)

// cPlan is how a C source is compiled.
type cPlan struct {
	tool  string // clang
	files []string
	flags []string
}

// clang builds C: a file of its own, or all .c files of the folder into one
// module. With lode.h it is a handler, else a command.
func (b *builder) clang(ctx context.Context) (*Artifact, error) {
	p, err := b.planC()
	if err != nil {
		return nil, err
	}
	a := &Artifact{Watch: []string{b.root}}
	if b.file != "" {
		a.Watch = []string{b.file}
	}
	header, err := fs.ReadFile(sdk.Files(), "c/lode.h")
	if err != nil {
		return nil, err
	}
	k := key(b.root, append([]string{"c", b.file, p.tool, string(header)}, p.flags...)...)
	if wasm, ok := b.lookup(k); ok {
		a.Wasm, a.Cached = wasm, true
		return a, nil
	}
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return nil, lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	tmp, err := os.MkdirTemp(b.cache, "c-")
	if err != nil {
		return nil, lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.WriteFile(filepath.Join(tmp, "lode.h"), header, 0o644); err != nil {
		return nil, lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	out := filepath.Join(tmp, "out.wasm")
	cmd := exec.CommandContext(ctx, p.tool, slices.Concat(p.flags, []string{"-I", b.root, "-I", tmp, "-o", out}, p.files)...)
	cmd.Dir = b.root
	if output, err := cmd.CombinedOutput(); err != nil {
		return nil, cHint(b.complaint(p.tool, string(output), err), string(output))
	}
	if a.Wasm, err = os.ReadFile(out); err != nil {
		return nil, lode.Errorf(lode.Internal, "clang left no module: %w", err)
	}
	b.keep(k, a.Wasm)
	return a, nil
}

var (
	cInclude = regexp.MustCompile(`(?m)^\s*#\s*include\s*([<"])([^>"]+)[>"]`)
	cMain    = regexp.MustCompile(`(?m)\bmain\s*\(`)
)

// bareHeaders come with the compiler: a source that includes no others needs
// no C library.
var bareHeaders = []string{"stddef.h", "stdint.h", "stdbool.h", "stdarg.h", "limits.h", "float.h", "stdalign.h", "stdnoreturn.h", "wasm_simd128.h"}

// planC looks for the compiler and decides how to compile.
func (b *builder) planC() (p cPlan, err error) {
	if b.file != "" {
		p.files = []string{b.file}
	} else {
		p.files, _ = filepath.Glob(filepath.Join(globSafe(b.root), "*.c"))
	}
	handler, main, libc := false, false, false
	headers, _ := filepath.Glob(filepath.Join(globSafe(b.root), "*.h"))
	for _, f := range append(slices.Clone(p.files), headers...) {
		text, err := os.ReadFile(f)
		if err != nil {
			return p, lode.Errorf(lode.Invalid, "source: %w", err)
		}
		main = main || cMain.Match(text)
		for _, m := range cInclude.FindAllSubmatch(text, -1) {
			switch name := string(m[2]); {
			case name == "lode.h":
				handler = true
			case string(m[1]) == "<" && !slices.Contains(bareHeaders, name):
				libc = true
			}
		}
	}
	if !handler && !main {
		return p, lode.Errorf(lode.Invalid, "%s has neither lode.h nor a main", b.src.Path).
			WithHint("include lode.h and list the handlers with LODE_EXPORTS, or write a main that reads standard input")
	}
	if p.tool, err = findClang(); err != nil {
		return p, err
	}
	// -O2 goes to the compiler alone: told of it, clang's driver runs any wasm-opt
	// that it finds, and an old one refuses SIMD.
	p.flags = []string{"-Xclang", "-O2", "-msimd128", "-mbulk-memory", "-Wall", "-Wl,--strip-all", "-Wl,--stack-first", "-Wl,-z,stack-size=262144", "-fno-color-diagnostics"}
	if handler && !libc {
		p.flags = append(p.flags, "--target=wasm32", "-nostdlib", "-Wl,--no-entry")
		return p, nil
	}
	sysroot, err := findSysroot()
	if err != nil {
		return p, err
	}
	p.flags = append(p.flags, "--target=wasm32-wasi")
	if sysroot != "" {
		p.flags = append(p.flags, "--sysroot="+sysroot)
	}
	if handler {
		p.flags = append(p.flags, "-mexec-model=reactor")
	}
	return p, nil
}

// findClang prefers the WASI SDK that the user points at.
func findClang() (string, error) {
	names := []string{"clang"}
	if dir := os.Getenv("WASI_SDK_PATH"); dir != "" {
		names = []string{filepath.Join(dir, "bin", "clang"), "clang"}
	}
	for v := 22; v >= 14; v-- {
		names = append(names, fmt.Sprint("clang-", v))
	}
	for _, n := range names {
		if path, err := exec.LookPath(n); err == nil {
			return path, nil
		}
	}
	return "", lode.Errorf(lode.Unavailable, "building C needs clang, and there is none").
		WithHint("on Debian: apt install clang lld wasi-libc libclang-rt-dev-wasm32; elsewhere: set WASI_SDK_PATH to a WASI SDK; or deploy a ready .wasm file")
}

// findSysroot looks for wasi-libc; "" if the compiler finds it by itself.
func findSysroot() (string, error) {
	if dir := os.Getenv("WASI_SDK_PATH"); dir != "" {
		return filepath.Join(dir, "share", "wasi-sysroot"), nil
	}
	if _, err := os.Stat("/usr/include/wasm32-wasi"); err == nil {
		return "", nil
	}
	for _, dir := range []string{"/usr/share/wasi-sysroot", "/opt/wasi-sdk/share/wasi-sysroot", "/opt/homebrew/share/wasi-sysroot"} {
		if _, err := os.Stat(dir); err == nil {
			return dir, nil
		}
	}
	return "", lode.Errorf(lode.Unavailable, "this C source needs the C library for WebAssembly, and there is none").
		WithHint("on Debian: apt install wasi-libc libclang-rt-dev-wasm32; elsewhere: set WASI_SDK_PATH; a handler that includes only lode.h needs none")
}

// cHint adds the next step to the complaints that have one.
func cHint(err error, output string) error {
	e := lode.AsError(err)
	switch {
	case strings.Contains(output, "wasm-ld"):
		e.Hint = "on Debian: apt install lld"
	case strings.Contains(output, "clang_rt.builtins"):
		e.Hint = "on Debian: apt install libclang-rt-dev-wasm32"
	}
	if strings.Contains(output, "error:") && strings.Contains(output, ".c:") {
		e.Hint = ""
	}
	return e
}
