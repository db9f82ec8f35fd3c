package build

import (
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zeebo/blake3"
)

// Limits of what is hashed to find an unchanged source. Beyond them the
// compiler's own cache has to do.
const (
	maxHashFiles = 4000
	maxHashBytes = 64 << 20
)

// key is the hash of a tree's files and of the words that change how it is
// built; "" for a tree that is too large to hash.
func key(root string, words ...string) string {
	h := blake3.New()
	for _, w := range words {
		h.WriteString(w + "\x00")
	}
	files, total := 0, int64(0)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != root && skipped(d.Name()) && d.Name() != "vendor" {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if files, total = files+1, total+int64(len(b)); files > maxHashFiles || total > maxHashBytes {
			return fs.ErrInvalid
		}
		rel, _ := filepath.Rel(root, path)
		sum := blake3.Sum256(b)
		h.WriteString(rel + "\x00")
		h.Write(sum[:])
		return nil
	})
	if err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// lookup returns the artifact kept under key.
func (b *builder) lookup(key string) ([]byte, bool) {
	if key == "" {
		return nil, false
	}
	wasm, err := os.ReadFile(filepath.Join(b.cache, key+".wasm"))
	return wasm, err == nil
}

// keep stores an artifact under key, whole or not at all. A cache that cannot
// be written only costs time.
func (b *builder) keep(key string, wasm []byte) {
	if key == "" {
		return
	}
	f, err := os.CreateTemp(b.cache, "new-")
	if err != nil {
		b.log.Warn("the build cache cannot be written", "error", err)
		return
	}
	_, err = f.Write(wasm)
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(b.cache, key+".wasm"))
	}
	if err != nil {
		os.Remove(f.Name())
		b.log.Warn("the build cache cannot be written", "error", err)
	}
}
