package enginetest

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

//go:embed testdata
var guests embed.FS

// C builds testdata/c/NAME.c: a command if it has a main, else a handler. The
// test is skipped where clang cannot build for WebAssembly.
func C(t testing.TB, name string) []byte {
	t.Helper()
	clang, err := exec.LookPath("clang")
	if err != nil {
		t.Skip("clang is not installed: needed to build the guests in C")
	}
	src := read(t, "testdata/c/"+name+".c")
	files := map[string][]byte{"lode.h": read(t, "testdata/c/lode.h"), "guest.c": src}
	args := []string{"--target=wasm32-wasi", "-Xclang", "-O2", "-o", "guest.wasm", "guest.c"}
	if !bytes.Contains(src, []byte("int main(")) {
		args = append(args, "-mexec-model=reactor")
	}
	return build(t, files, nil, append([]string{clang}, args...))
}

// Go builds testdata/go/NAME.go for wasip1: a command, or a handler if it
// exports lode_invoke.
func Go(t testing.TB, name string) []byte {
	t.Helper()
	src := read(t, "testdata/go/"+name+".go.txt")
	files := map[string][]byte{"go.mod": []byte("module guest\n\ngo 1.24\n"), "main.go": src}
	args := []string{"go", "build", "-o", "guest.wasm"}
	if bytes.Contains(src, []byte("//go:wasmexport lode_invoke")) {
		args = append(args, "-buildmode=c-shared")
	}
	return build(t, files, []string{"GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=", "GOWORK=off"}, append(args, "."))
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := guests.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// build runs command in a folder with files and returns guest.wasm. Equal
// input is built once on a machine.
func build(t testing.TB, files map[string][]byte, env, command []string) []byte {
	t.Helper()
	h := sha256.New()
	h.Write([]byte(runtime.Version() + strings.Join(command, "\x00") + strings.Join(env, "\x00")))
	for _, name := range []string{"lode.h", "guest.c", "go.mod", "main.go"} {
		h.Write([]byte("\x00" + name + "\x00"))
		h.Write(files[name])
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = t.TempDir()
	}
	cache = filepath.Join(cache, "lode-enginetest")
	kept := filepath.Join(cache, hex.EncodeToString(h.Sum(nil))[:32]+".wasm")
	if b, err := os.ReadFile(kept); err == nil {
		return b
	}
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(out), "wasm") && strings.Contains(command[0], "clang") && strings.Contains(string(out), "unable to") {
			t.Skipf("clang cannot build for WebAssembly: %s", out)
		}
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "guest.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	if os.MkdirAll(cache, 0o700) == nil && os.WriteFile(kept+".new", b, 0o600) == nil {
		os.Rename(kept+".new", kept)
	}
	return b
}
