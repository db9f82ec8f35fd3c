// Package build turns a folder or a file into artifacts, on the user's
// machine: Go with the machine's toolchain, JavaScript and TypeScript with
// esbuild's library, C with clang, and ready WebAssembly as it is.
//
// It promises that the same source gives the same bytes on one machine, that
// an unchanged source costs milliseconds, and that a compiler's complaint
// reaches the user as the compiler wrote it, with kind Invalid. It never
// writes into the source folder. It runs no guest: what a guest says of itself
// comes from the Describe function that the caller passes. Only the command
// line imports it.
package build

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/zeebo/blake3"

	"lode"
)

// Source is what to build. Path alone is enough.
type Source struct {
	Path string // folder or file
	// Name is the function's; empty: the folder's or file's name, bent into a
	// valid one.
	Name string
	// Build, if not empty, is a command that is run in the folder first; it
	// must leave exactly one .wasm file, or a source, behind.
	Build []string
	// Cache is where artifacts and the unpacked SDK are kept; empty: lode in
	// the user's cache folder. It may be removed at any time.
	Cache string
	// Describe runs a handler module's describe export; nil: Description
	// stays nil.
	Describe func(ctx context.Context, wasm []byte) (*lode.Description, error)
	Log      *slog.Logger // nil: discards
}

// Artifact is one built module.
type Artifact struct {
	Name        lode.Name
	Wasm        []byte
	Digest      lode.Digest // of Wasm
	Language    string      // go, js, ts, c, wasm
	Contract    lode.Contract
	Description *lode.Description // nil for a command, or without Source.Describe
	// Watch are the files and folders that the build read: a change below
	// them asks for a new one.
	Watch  []string
	Cached bool // nothing was compiled
}

// builder makes one module of a source.
type builder struct {
	src   Source
	root  string // folder of the source
	file  string // the file that Path named; empty for a folder
	cache string
	log   *slog.Logger
}

// Build builds s: one artifact for a source; for a folder that is none itself,
// one for each folder in it that is, sorted by name. Errors are *lode.Error:
// Invalid for what the user can mend in his source, NotFound for a missing
// path, Unavailable for a missing compiler.
func Build(ctx context.Context, s Source) ([]Artifact, error) {
	b, err := newBuilder(s)
	if err != nil {
		return nil, err
	}
	if len(s.Build) > 0 {
		if err := b.runBuild(ctx); err != nil {
			return nil, err
		}
	}
	kind, err := b.detect()
	if err != nil {
		return nil, err
	}
	if kind == "" {
		return b.children(ctx)
	}
	a, err := b.one(ctx, kind)
	if err != nil {
		return nil, err
	}
	return []Artifact{*a}, nil
}

func newBuilder(s Source) (*builder, error) {
	path, err := filepath.Abs(s.Path)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "source %s: %w", s.Path, err)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, lode.Errorf(lode.NotFound, "there is no source %s", s.Path).WithHint("give a folder, or a .go, .js, .ts, .c or .wasm file")
	}
	b := &builder{src: s, root: path, cache: s.Cache, log: s.Log}
	if !info.IsDir() {
		b.root, b.file = filepath.Dir(path), path
	}
	if b.cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			base = os.TempDir()
		}
		b.cache = filepath.Join(base, "lode", "build")
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	return b, nil
}

// one builds the source as the kind that detect found.
func (b *builder) one(ctx context.Context, kind string) (*Artifact, error) {
	name, err := b.name()
	if err != nil {
		return nil, err
	}
	var a *Artifact
	switch kind {
	case "go":
		a, err = b.golang(ctx)
	case "js", "ts":
		a, err = b.script(ctx, kind)
	case "c":
		a, err = b.clang(ctx)
	default:
		a, err = b.ready(ctx)
	}
	if err != nil {
		return nil, err
	}
	a.Name, a.Language, a.Digest = name, kind, blake3.Sum256(a.Wasm)
	if a.Contract, err = contract(a.Wasm); err != nil {
		return nil, err
	}
	if a.Contract == lode.ContractHandler && b.src.Describe != nil {
		if a.Description, err = b.src.Describe(ctx, a.Wasm); err != nil {
			return nil, err
		}
	}
	b.log.Info("built", "name", name, "language", kind, "contract", a.Contract, "bytes", len(a.Wasm), "cached", a.Cached)
	return a, nil
}

// name is the function's name.
func (b *builder) name() (lode.Name, error) {
	if b.src.Name != "" {
		return lode.ParseName(b.src.Name)
	}
	base := filepath.Base(b.root)
	if b.file != "" {
		base = strings.TrimSuffix(filepath.Base(b.file), filepath.Ext(b.file))
		if base == "main" || base == "index" || base == "handler" {
			base = filepath.Base(b.root)
		}
	}
	return lode.ParseName(bend(base))
}

// bend makes a name of a folder's name: "My_App" is my-app. What cannot be
// bent comes back as it is, for ParseName to refuse.
func bend(base string) string {
	out := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, base)
	out = strings.Trim(out, "-")
	out = out[:min(len(out), 48)]
	if _, err := lode.ParseName(out); err != nil {
		return base
	}
	return out
}

// detect says what the source is: go, js, ts, c, wasm, or "" for a folder of
// folders.
func (b *builder) detect() (string, error) {
	if b.file != "" {
		switch ext := filepath.Ext(b.file); ext {
		case ".go", ".c", ".wasm", ".js", ".ts":
			return ext[1:], nil
		case ".mjs", ".jsx":
			return "js", nil
		case ".mts", ".tsx":
			return "ts", nil
		}
		return "", lode.Errorf(lode.Invalid, "%s is no source that Lode builds", b.src.Path).WithHint("it builds .go, .js, .mjs, .ts, .tsx, .c, and takes .wasm as it is")
	}
	if b.any("go.mod") || b.any("*.go") {
		return "go", nil
	}
	if entry, err := b.entry(); err != nil {
		return "", err
	} else if entry != "" {
		return scriptKind(entry), nil
	}
	if b.any("*.c") {
		return "c", nil
	}
	if b.any("*.wasm") {
		return "wasm", nil
	}
	return "", nil
}

// any reports whether the folder has a file that matches.
func (b *builder) any(pattern string) bool {
	m, _ := filepath.Glob(filepath.Join(globSafe(b.root), pattern))
	return len(m) > 0
}

// globSafe quotes a path for Glob.
func globSafe(p string) string {
	return strings.NewReplacer("[", `\[`, "*", `\*`, "?", `\?`).Replace(p)
}

// children builds each folder in the source that is a source.
func (b *builder) children(ctx context.Context) ([]Artifact, error) {
	list, err := os.ReadDir(b.root)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "source %s: %w", b.src.Path, err)
	}
	var out []Artifact
	for _, e := range list {
		if !e.IsDir() || skipped(e.Name()) {
			continue
		}
		s := b.src
		s.Path, s.Name, s.Build = filepath.Join(b.root, e.Name()), "", nil
		child, err := newBuilder(s)
		if err != nil {
			return nil, err
		}
		kind, err := child.detect()
		if err != nil {
			return nil, err
		}
		if kind == "" {
			continue
		}
		a, err := child.one(ctx, kind)
		if err != nil {
			return nil, err
		}
		out = append(out, *a)
	}
	if len(out) == 0 {
		return nil, lode.Errorf(lode.Invalid, "%s holds no source", b.src.Path).WithHint("lode new NAME makes one; a source is main.go, index.ts, index.js, *.c or *.wasm")
	}
	return out, nil
}

// skipped are folders that are no part of a source.
func skipped(name string) bool {
	return strings.HasPrefix(name, ".") || name == "node_modules" || name == "testdata" || name == "vendor"
}

// runBuild runs the user's own build command.
func (b *builder) runBuild(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, b.src.Build[0], b.src.Build[1:]...)
	cmd.Dir = b.root
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return b.complaint(strings.Join(b.src.Build, " "), out.String(), err)
	}
	return nil
}

// complaint is a compiler's failure as the user sees it.
func (b *builder) complaint(what, output string, err error) error {
	if errors.Is(err, exec.ErrNotFound) {
		return lode.Errorf(lode.Unavailable, "%s: %w", what, err)
	}
	output = strings.TrimSpace(strings.ReplaceAll(output, b.root+string(filepath.Separator), ""))
	if output == "" {
		output = err.Error()
	}
	return lode.Errorf(lode.Invalid, "%s does not build:\n%s", filepath.Base(b.root), output)
}
