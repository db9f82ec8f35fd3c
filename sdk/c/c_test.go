// Package c_test runs the C header against the ABI's vectors, freestanding and
// with wasi-libc. It is skipped where there is no clang for wasm.
package c_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"lode/sdk/abi/abitest"
)

func compile(t *testing.T, flags ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("clang"); err != nil {
		t.Skip("no clang")
	}
	out := filepath.Join(t.TempDir(), "guest.wasm")
	args := append(flags, "-Xclang", "-O2", "-Wall", "-Wextra", "-Werror", "-msimd128", "-mbulk-memory", "-I.", "-o", out, "testdata/vectors.c")
	if b, err := exec.Command("clang", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

func TestFreestanding(t *testing.T) {
	wasm := compile(t, "--target=wasm32", "-nostdlib", "-Wl,--no-entry")
	abitest.Conformance(t, wasm)
	ctx := context.Background()
	g, err := abitest.Load(ctx, wasm)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(ctx)
	r, err := g.Invoke(ctx, abitest.Call{Head: map[string]string{":kind": "job", ":shard-bytes": "3"}, Shard: []byte{1, 2, 200}})
	if err != nil || string(r.Body) != "203" {
		t.Errorf("job: %v %+v", err, r)
	}
	r, err = g.Invoke(ctx, abitest.Call{Head: map[string]string{":kind": "merge"}, Body: []byte("\x02\x00\x00\x00" + "20" + "3")})
	if err != nil || string(r.Body) != "23" {
		t.Errorf("merge: %v %+v", err, r)
	}
}

func TestWithLibc(t *testing.T) {
	if _, err := os.Stat("/usr/include/wasm32-wasi"); err != nil {
		t.Skip("no wasi-libc")
	}
	abitest.Conformance(t, compile(t, "--target=wasm32-wasi", "-mexec-model=reactor"))
}
