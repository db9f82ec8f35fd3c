// Package sdk carries the guests' SDKs inside the binary, so that building a
// function needs no download: Go sources, the C header, and the JavaScript
// engine with its prelude. Files and Unpack are all it promises; it keeps no
// state. Rooms that build or scaffold functions import it.
package sdk

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

//go:embed go/*.go abi/abi.go abi/state.go abi/solo/*.go c/lode.h js/prelude/*.js js/engine/quickjs.wasm.gz
var files embed.FS

// Files are the SDKs by their path below this folder.
func Files() fs.FS { return files }

// GoModule is the go.mod of the unpacked Go SDK.
const GoModule = "module lode\n\ngo 1.26\n"

// Unpack writes the Go SDK as a module below dir, unless it is there already,
// and returns the module's folder: dir/sdk-HASH. An import of lode/sdk/go
// resolves to it through a replace directive. Two callers may race.
func Unpack(dir string) (string, error) {
	names, hash, err := goFiles()
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, "sdk-"+hash)
	if _, err := os.Stat(filepath.Join(to, "go.mod")); err == nil {
		return to, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(dir, "sdk-new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	for _, n := range names {
		b, err := files.ReadFile(n)
		if err != nil {
			return "", err
		}
		at := filepath.Join(tmp, "sdk", filepath.FromSlash(n))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(at, b, 0o644); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(tmp, "go.mod"), []byte(GoModule), 0o644); err != nil {
		return "", err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, to); err != nil && !errors.Is(err, fs.ErrExist) {
		if _, err2 := os.Stat(filepath.Join(to, "go.mod")); err2 != nil {
			return "", err
		}
	}
	return to, nil
}

// goFiles lists the Go SDK's files without tests, and their common hash.
func goFiles() (names []string, hash string, err error) {
	h := sha256.New()
	for _, dir := range []string{"abi", "abi/solo", "go"} {
		list, err := files.ReadDir(dir)
		if err != nil {
			return nil, "", err
		}
		for _, e := range list {
			if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
				continue
			}
			n := path.Join(dir, e.Name())
			b, err := files.ReadFile(n)
			if err != nil {
				return nil, "", err
			}
			h.Write([]byte(n + "\x00"))
			h.Write(b)
			names = append(names, n)
		}
	}
	return names, hex.EncodeToString(h.Sum(nil))[:12], nil
}

// QuickJS is the JavaScript engine: a handler module that takes its program
// from the custom section lode.init. See js/README.md.
func QuickJS() ([]byte, error) {
	packed, err := files.ReadFile("js/engine/quickjs.wasm.gz")
	if err != nil {
		return nil, err
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// Prelude is the script that gives the engine its web API. needs are the
// bindings that a program uses as env.NAME.
func Prelude(needs []string) (string, error) {
	list, err := files.ReadDir("js/prelude")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("(function (host, needs) {\"use strict\";\n")
	for _, e := range list {
		text, err := files.ReadFile("js/prelude/" + e.Name())
		if err != nil {
			return "", err
		}
		b.Write(text)
	}
	names, err := json.Marshal(append([]string{}, needs...))
	if err != nil {
		return "", err
	}
	b.WriteString("})(__lode, " + string(names) + ");\n")
	return b.String(), nil
}
