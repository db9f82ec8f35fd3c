package enginetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"sync"

	"lode/engine"
	"lode/engine/rewrite"
)

// Source is an artifact in memory. Compiled code is kept in memory, and with
// Cache also in the user's cache, since compiling is slow under the race
// detector.
type Source struct {
	Wasm  []byte
	Cache bool

	mu    sync.Mutex
	Kept  map[string][]byte
	Loads int // calls of Module
}

// Module implements engine.Source.
func (s *Source) Module(context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Loads++
	return s.Wasm, nil
}

// Code implements engine.Source.
func (s *Source) Code(_ context.Context, key string) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.Kept[key]; ok {
		return b, true, nil
	}
	if !s.Cache {
		return nil, false, nil
	}
	b, err := os.ReadFile(s.path(key))
	return b, err == nil, nil
}

// Keep implements engine.Source.
func (s *Source) Keep(_ context.Context, key string, code []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Kept == nil {
		s.Kept = map[string][]byte{}
	}
	s.Kept[key] = code
	if path := s.path(key); s.Cache && os.MkdirAll(filepath.Dir(path), 0o700) == nil && os.WriteFile(path+".new", code, 0o600) == nil {
		os.Rename(path+".new", path)
	}
	return nil
}

// path is the place of key in the user's cache. What the rewriting pass makes
// of the module is part of it: the key alone stays the same while somebody
// works on the pass.
func (s *Source) path(key string) string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(dir, "lode-enginetest", rewritten(s.Wasm)+"-"+hex.EncodeToString(sum[:8])+".code")
}

// passed remembers what rewritten has found out: a pure function, slow under
// the race detector.
var passed sync.Map

// rewritten names what the rewriting pass makes of wasm.
func rewritten(wasm []byte) string {
	in := sha256.Sum256(wasm)
	if name, ok := passed.Load(in); ok {
		return name.(string)
	}
	name := "invalid"
	if m, err := rewrite.Rewrite(wasm, rewrite.Options{}); err == nil {
		sum := sha256.Sum256(m.Wasm)
		name = hex.EncodeToString(sum[:8])
	}
	passed.Store(in, name)
	return name
}

var _ engine.Source = (*Source)(nil)

// Key is the key that the tests' engines authenticate cached code with.
func Key() []byte { return []byte("enginetest") }
