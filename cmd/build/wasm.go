package build

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"

	"lode"
)

// ready takes a .wasm file as it is.
func (b *builder) ready(context.Context) (*Artifact, error) {
	file := b.file
	if file == "" {
		m, _ := filepath.Glob(filepath.Join(globSafe(b.root), "*.wasm"))
		if len(m) != 1 {
			return nil, lode.Errorf(lode.Invalid, "%s holds %d .wasm files", b.src.Path, len(m)).WithHint("name one of them")
		}
		file = m[0]
	}
	wasm, err := os.ReadFile(file)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "source: %w", err)
	}
	return &Artifact{Wasm: wasm, Watch: []string{file}, Cached: true}, nil
}

// contract looks at a module's exports: lode_invoke makes it a handler,
// _start a command.
func contract(wasm []byte) (lode.Contract, error) {
	names, err := exports(wasm)
	if err != nil {
		return "", err
	}
	switch {
	case names["lode_invoke"]:
		return lode.ContractHandler, nil
	case names["_start"]:
		return lode.ContractCommand, nil
	}
	return "", lode.Errorf(lode.Invalid, "the module exports neither lode_invoke nor _start").
		WithHint("a handler includes lode.h or uses an SDK; a command is built as a WASI command with a main")
}

var errCut = lode.Errorf(lode.Invalid, "the file is not a WebAssembly module, or it is cut short").WithHint("core WebAssembly modules with WASI preview 1 are taken, components are not")

// exports reads the names in a module's export section (7).
func exports(wasm []byte) (map[string]bool, error) {
	if len(wasm) < 8 || !bytes.Equal(wasm[:8], []byte("\x00asm\x01\x00\x00\x00")) {
		return nil, errCut
	}
	names := map[string]bool{}
	for rest := wasm[8:]; len(rest) > 0; {
		id := rest[0]
		size, n := binary.Uvarint(rest[1:])
		if n <= 0 || size > uint64(len(rest)-1-n) {
			return nil, errCut
		}
		body := rest[1+n : 1+n+int(size)]
		rest = rest[1+n+int(size):]
		if id != 7 {
			continue
		}
		count, n := binary.Uvarint(body)
		if n <= 0 {
			return nil, errCut
		}
		for body = body[n:]; count > 0; count-- {
			length, n := binary.Uvarint(body)
			if n <= 0 || length > uint64(len(body)-n) {
				return nil, errCut
			}
			names[string(body[n:n+int(length)])] = true
			body = body[n+int(length):]
			if len(body) < 2 {
				return nil, errCut
			}
			_, n = binary.Uvarint(body[1:])
			if n <= 0 {
				return nil, errCut
			}
			body = body[1+n:]
		}
	}
	return names, nil
}

// addSection appends a custom section to a module.
func addSection(wasm []byte, name string, data []byte) []byte {
	var body []byte
	body = binary.AppendUvarint(body, uint64(len(name)))
	body = append(body, name...)
	out := make([]byte, 0, len(wasm)+len(body)+len(data)+11)
	out = append(out, wasm...)
	out = append(out, 0)
	out = binary.AppendUvarint(out, uint64(len(body)+len(data)))
	out = append(out, body...)
	return append(out, data...)
}
