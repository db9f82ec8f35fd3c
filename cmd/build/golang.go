package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	gobuild "go/build"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"

	"lode"
	"lode/sdk"
)

// goSDK is the import path of the Go SDK.
const goSDK = "lode/sdk/go"

// golang builds a Go main package: a reactor if anything in its module imports
// the SDK, else a command.
func (b *builder) golang(ctx context.Context) (*Artifact, error) {
	tool, err := exec.LookPath("go")
	if err != nil {
		return nil, lode.Errorf(lode.Unavailable, "building %s needs Go, and there is no go command", filepath.Base(b.root)).
			WithHint("install Go 1.26 or newer from https://go.dev/dl, or deploy a ready .wasm file")
	}
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return nil, lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	unpacked, err := sdk.Unpack(b.cache)
	if err != nil {
		return nil, lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	m, err := b.module()
	if err != nil {
		return nil, err
	}
	scan := scanner{module: m, seen: map[string]bool{}}
	if err := scan.source(b); err != nil {
		return nil, err
	}
	a := &Artifact{Watch: []string{m.root}}
	k := ""
	if !m.elsewhere {
		k = key(m.root, "go", b.root, b.file, unpacked, os.Getenv("GOFLAGS"), scan.flavour(), toolVersion(tool))
	}
	if wasm, ok := b.lookup(k); ok {
		a.Wasm, a.Cached = wasm, true
		return a, nil
	}
	if a.Wasm, err = b.goBuild(ctx, tool, unpacked, m, &scan); err != nil {
		return nil, err
	}
	b.keep(k, a.Wasm)
	return a, nil
}

// toolVersion tells one Go installation from the next without running it.
func toolVersion(tool string) string {
	real, err := filepath.EvalSymlinks(tool)
	if err != nil {
		return tool
	}
	v, _ := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(real)), "VERSION"))
	return real + string(v)
}

// module is the Go module that a source is in.
type module struct {
	root      string // folder of go.mod, or the source's own
	path      string // module path
	file      bool   // there is a go.mod
	elsewhere bool   // its build reads files outside of root
}

// module finds the go.mod above the source.
func (b *builder) module() (module, error) {
	for dir := b.root; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil {
			m := module{root: dir, path: modulePath(string(text)), file: true}
			if m.path == "" {
				return m, lode.Errorf(lode.Invalid, "%s has no module line", filepath.Join(dir, "go.mod"))
			}
			m.elsewhere = strings.Contains(string(text), "=> .") || strings.Contains(string(text), "=> /") && !strings.Contains(string(text), "replace lode => /")
			return m, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return module{}, lode.Errorf(lode.Invalid, "go.mod: %w", err)
		}
		if dir == filepath.Dir(dir) {
			return module{root: b.root, path: "function/" + bend(filepath.Base(b.root))}, nil
		}
	}
}

// modulePath reads the module line of a go.mod.
func modulePath(text string) string {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "//")
		if f := strings.Fields(line); len(f) == 2 && f[0] == "module" {
			if p, err := strconv.Unquote(f[1]); err == nil {
				return p
			}
			return f[1]
		}
	}
	return ""
}

// scanner reads the imports of a main package and of the module's packages
// below it.
type scanner struct {
	module module
	seen   map[string]bool
	sdk    bool // somebody imports the SDK
	http   bool // somebody may need net/http
}

// flavour names what the scan decided.
func (s *scanner) flavour() string {
	switch {
	case !s.sdk:
		return "command"
	case s.http:
		return "handler with net/http"
	}
	return "handler"
}

// source scans the builder's package.
func (s *scanner) source(b *builder) error {
	if b.file != "" {
		return s.file(b.file)
	}
	c := wasip1()
	p, err := c.ImportDir(b.root, 0)
	if _, none := err.(*gobuild.NoGoError); none {
		return lode.Errorf(lode.Invalid, "%s holds no Go files for wasip1", b.src.Path).WithHint("the main package belongs into the source folder")
	}
	if err != nil {
		return b.complaint("go", err.Error(), err)
	}
	if p.Name != "main" {
		return lode.Errorf(lode.Invalid, "%s holds package %s, not a main package", b.src.Path, p.Name).WithHint("name the folder of the package main: lode deploy ./cmd/x")
	}
	return s.packageFiles(b.root, p.GoFiles)
}

func wasip1() gobuild.Context {
	c := gobuild.Default
	c.GOOS, c.GOARCH, c.CgoEnabled = "wasip1", "wasm", false
	return c
}

func (s *scanner) packageFiles(dir string, names []string) error {
	for _, n := range names {
		if err := s.file(filepath.Join(dir, n)); err != nil {
			return err
		}
	}
	return nil
}

// file scans one file's imports. A file that does not parse is left for the
// compiler to complain about.
func (s *scanner) file(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return lode.Errorf(lode.Invalid, "source: %w", err)
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ImportsOnly)
	if err != nil {
		return nil
	}
	for _, spec := range f.Imports {
		imp, _ := strconv.Unquote(spec.Path.Value)
		if err := s.imported(imp, text); err != nil {
			return err
		}
	}
	return nil
}

// imported notes one import of a file with that text.
func (s *scanner) imported(imp string, text []byte) error {
	first, _, _ := strings.Cut(imp, "/")
	switch {
	case imp == goSDK:
		s.sdk = true
		// A client needs net/http without naming it.
		s.http = s.http || bytes.Contains(text, []byte("Fetch"))
	case imp == s.module.path || strings.HasPrefix(imp, s.module.path+"/"):
		return s.own(imp)
	case strings.HasPrefix(imp, "net/http") || imp == "net/rpc" || imp == "expvar" || strings.Contains(first, "."):
		s.http = true // any foreign package may import it
	}
	return nil
}

// own scans a package of the module.
func (s *scanner) own(imp string) error {
	if s.seen[imp] {
		return nil
	}
	s.seen[imp] = true
	dir := filepath.Join(s.module.root, filepath.FromSlash(strings.TrimPrefix(strings.TrimPrefix(imp, s.module.path), "/")))
	c := wasip1()
	p, err := c.ImportDir(dir, 0)
	if err != nil {
		return nil // the compiler says it better
	}
	return s.packageFiles(dir, p.GoFiles)
}

// goBuild runs the go command.
func (b *builder) goBuild(ctx context.Context, tool, unpacked string, m module, s *scanner) ([]byte, error) {
	tmp, err := os.MkdirTemp(b.cache, "go-")
	if err != nil {
		return nil, lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "out.wasm")
	args := []string{"build", "-o", out, "-trimpath", "-ldflags=-s -w", "-buildvcs=false"}
	if s.sdk {
		args = append(args, "-buildmode=c-shared")
		if !s.http {
			args = append(args, "-tags=lode_nohttp")
		}
	}
	more, err := b.resolve(ctx, tool, unpacked, m)
	if err != nil {
		return nil, err
	}
	args = append(args, more...)
	if b.file != "" {
		args = append(args, b.file)
	} else {
		args = append(args, ".")
	}
	if output, err := b.goRun(ctx, tool, args...); err != nil {
		return nil, goHint(b.complaint("go build", output, err), output)
	}
	return os.ReadFile(out)
}

func (b *builder) goRun(ctx context.Context, tool string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = b.root
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOWORK=off")
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// goHint adds the next step to the complaints that have one.
func goHint(err error, output string) error {
	e := lode.AsError(err)
	switch {
	case strings.Contains(output, "no required module provides package"):
		e.Hint = "go mod init, then go get the package"
	case strings.Contains(output, "requires go >="):
		e.Hint = "install Go 1.26 or newer from https://go.dev/dl"
	case strings.Contains(output, "call to lode.Agent"):
		e.Hint = `lode.Agent takes a name, what makes an agent's value, and the methods that only read: lode.Agent("cart", func(key string) *Cart { ... }, "Total")`
	}
	return e
}

// resolve returns the flags that make lode/sdk/go resolve to the unpacked SDK,
// without touching the user's files.
func (b *builder) resolve(ctx context.Context, tool, unpacked string, m module) ([]string, error) {
	if m.path == "lode" {
		return nil, nil // Lode's own tree
	}
	if !m.file {
		return b.overlay(unpacked, m)
	}
	text, err := os.ReadFile(filepath.Join(m.root, "go.mod"))
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "go.mod: %w", err)
	}
	sums, _ := os.ReadFile(filepath.Join(m.root, "go.sum"))
	hash := blake3.Sum256(append(append(append(text, 0), sums...), m.root+unpacked...))
	file := filepath.Join(b.cache, "mod-"+lode.Digest(hash).Short()+".mod")
	if _, err := os.Stat(file); err != nil {
		if err := b.writeModule(ctx, tool, file, text, sums, unpacked); err != nil {
			return nil, err
		}
	}
	flags := []string{"-modfile=" + file}
	if _, err := os.Stat(filepath.Join(m.root, "vendor", "modules.txt")); err == nil {
		flags = append(flags, "-mod=mod") // the vendored tree does not know the SDK
	}
	return flags, nil
}

// writeModule writes a copy of the user's go.mod that knows the SDK.
func (b *builder) writeModule(ctx context.Context, tool, file string, text, sums []byte, unpacked string) error {
	if err := os.WriteFile(strings.TrimSuffix(file, ".mod")+".sum", sums, 0o644); err != nil {
		return lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	output, err := b.goRun(ctx, tool, "mod", "edit", "-dropreplace=lode", "-require=lode@v0.0.0", "-replace=lode="+unpacked, tmp)
	if err != nil {
		os.Remove(tmp)
		return b.complaint("go mod edit", output, err)
	}
	return os.Rename(tmp, file)
}

// overlay gives a folder without go.mod one that only this build sees.
func (b *builder) overlay(unpacked string, m module) ([]string, error) {
	mod := goModule(m.path, unpacked)
	sum := blake3.Sum256([]byte(m.root + "\x00" + mod))
	base := filepath.Join(b.cache, "overlay-"+lode.Digest(sum).Short())
	over, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(m.root, "go.mod"): base + ".mod"}})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(base+".mod", []byte(mod), 0o644); err != nil {
		return nil, lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	if err := os.WriteFile(base+".json", over, 0o644); err != nil {
		return nil, lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	return []string{"-overlay=" + base + ".json"}, nil
}

// GoModule is a go.mod for a folder of Go functions, so that editors and
// `go run .` find the SDK too: it points at the SDK unpacked below cache (empty:
// as in Source). Building does not need it, and replaces what it points at.
func GoModule(name lode.Name, cache string) (string, error) {
	b, err := newBuilder(Source{Path: ".", Cache: cache})
	if err != nil {
		return "", err
	}
	unpacked, err := sdk.Unpack(b.cache)
	if err != nil {
		return "", lode.Errorf(lode.Full, "the build cache: %w", err)
	}
	return goModule("function/"+string(name), unpacked), nil
}

func goModule(path, unpacked string) string {
	return "module " + path + "\n\ngo 1.26\n\nrequire lode v0.0.0\n\nreplace lode => " + strconv.Quote(unpacked) + "\n"
}
