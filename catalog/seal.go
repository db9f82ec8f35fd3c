package catalog

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"

	"lode"
)

// Sealer turns bytes into what only the same Sealer can turn back.
type Sealer interface {
	Seal(plain []byte) ([]byte, error)
	// Open is Damaged for what was changed or sealed by another.
	Open(sealed []byte) ([]byte, error)
}

// KeyFile is a Sealer whose key, an age X25519 identity, is in a file of mode
// 0600. A sealed value is an age file.
type KeyFile struct {
	path string
	id   *age.X25519Identity
}

var _ Sealer = (*KeyFile)(nil)

// OpenKeyFile reads the key, or makes one if there is no file. Denied: others
// may read the file.
func OpenKeyFile(path string) (*KeyFile, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = newKeyFile(path); err != nil {
			return nil, lode.Errorf(lode.Unavailable, "make the key for secrets: %w", err)
		}
	} else if err != nil {
		return nil, lode.Errorf(lode.Unavailable, "read the key for secrets: %w", err)
	}
	if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 != 0 {
		return nil, lode.Errorf(lode.Denied, "%s has mode %o: others can read the key for secrets", path, st.Mode().Perm()).WithHint("chmod 600 %s", path)
	}
	id, err := age.ParseX25519Identity(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, lode.Errorf(lode.Damaged, "%s is not a key for secrets", path).WithHint("restore it from a backup; without it the secrets have to be set again")
	}
	return &KeyFile{path, id}, nil
}

// newKeyFile writes the key beside and links it into place, so that of two
// starts at the same time both have the same key and none a part of one.
func newKeyFile(path string) ([]byte, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".key-*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(id.String() + "\n")
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		err = errors.Join(d.Sync(), d.Close())
		if err != nil {
			return nil, err
		}
	}
	return os.ReadFile(path)
}

// Seal seals plain.
func (k *KeyFile) Seal(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, k.id.Recipient())
	if err == nil {
		if _, err = w.Write(plain); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "seal: %w", err)
	}
	return out.Bytes(), nil
}

// Open turns back what Seal made.
func (k *KeyFile) Open(sealed []byte) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), k.id)
	if err == nil {
		var plain []byte
		if plain, err = io.ReadAll(r); err == nil {
			return plain, nil
		}
	}
	return nil, lode.Errorf(lode.Damaged, "a sealed value cannot be opened with the key in %s: %w", k.path, err)
}
