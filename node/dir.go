package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"lode"
)

// A data folder holds:
//
//	lock          held while a node runs here; the process id inside
//	format        the format of this folder
//	admin.token   the admin token, for its owner only
//	code.key      32 random bytes: authenticates compiled code
//	secrets.key   the identity that secrets are sealed to
//	lode.sock     the management door for whoever may open it
//	node/         who this node is: its key, its certificate, the other nodes
//	join.json     what it was told of the bus when it joined
//	bus/          control state and queues
//	blobs/        artifacts and compiled code: this node's copies
//	data/         datasets, unless their home is a bucket: this node's copies
//	cache/        further copies, dropped when the room is needed
//	logs/         what functions and the node said
type dir struct {
	path string
	lock *os.File
}

// format is bumped when a folder of an older program cannot be read as it is.
const format = "lode data 1\n"

// openDir makes or opens the folder and locks it.
func openDir(path string) (*dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "data folder %s: %w", path, err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, lode.Errorf(lode.Invalid, "make the data folder: %w", err).WithHint("choose another with -d DIR")
	}
	d := &dir{path: path}
	if d.lock, err = lockFile(d.file("lock")); err != nil {
		owner, _ := os.ReadFile(d.file("lock"))
		return nil, lode.Errorf(lode.Conflict, "data folder %s is in use by process %s", path, strings.TrimSpace(string(owner))).
			WithHint("stop that node, or choose another folder with -d DIR")
	}
	if err := d.checkFormat(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *dir) checkFormat() error {
	got, err := os.ReadFile(d.file("format"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.write("format", []byte(format), 0o600)
	case err != nil:
		return lode.Errorf(lode.Internal, "read the data folder's format: %w", err)
	case string(got) != format:
		return lode.Errorf(lode.Precondition, "data folder %s was written by another version of lode: %q, this one reads %q", d.path, strings.TrimSpace(string(got)), strings.TrimSpace(format)).
			WithHint("run the version of lode that wrote it")
	}
	return nil
}

// has reports whether there is something of that name in the folder.
func (d *dir) has(name string) bool {
	_, err := os.Stat(d.file(name))
	return err == nil
}

func (d *dir) file(name ...string) string {
	return filepath.Join(append([]string{d.path}, name...)...)
}

// write replaces a small file durably: a reader sees the old or the new one.
func (d *dir) write(name string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(d.path, "."+name+"-*")
	if err != nil {
		return lode.Errorf(lode.Full, "write %s: %w", name, err)
	}
	defer os.Remove(f.Name())
	err = errors.Join(f.Chmod(mode), second(f.Write(b)), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), d.file(name))
	}
	if err != nil {
		return lode.Errorf(lode.Full, "write %s: %w", name, err)
	}
	return nil
}

func second(_ int, err error) error { return err }

// key returns the folder's own key, made at the first start.
func (d *dir) key(random func([]byte)) ([]byte, error) {
	b, err := os.ReadFile(d.file("code.key"))
	if errors.Is(err, fs.ErrNotExist) {
		raw := make([]byte, 32)
		random(raw)
		return raw, d.write("code.key", []byte(hex.EncodeToString(raw)+"\n"), 0o600)
	}
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "read the folder's key: %w", err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(raw) != 32 {
		return nil, lode.Errorf(lode.Damaged, "%s does not hold 64 hexadecimal digits", d.file("code.key")).
			WithHint("remove the file: code is compiled again then")
	}
	return raw, nil
}

func (d *dir) close() {
	if d.lock != nil {
		d.lock.Close() // gives the lock back
		d.lock = nil
	}
}

// adminToken returns the folder's admin token and makes it at the first start,
// or when its file was removed (which revokes the old one).
func (d *dir) adminToken(ctx context.Context, t *tokens, node lode.NodeID) (string, error) {
	b, err := os.ReadFile(d.file("admin.token"))
	if err == nil {
		token := strings.TrimSpace(string(b))
		if g, err := t.Authenticate(ctx, token); err == nil && g.Role == "admin" {
			return token, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", lode.Errorf(lode.Internal, "read the admin token: %w", err)
	}
	token, err := t.mintAdmin(ctx, node)
	if err != nil {
		return "", err
	}
	if err := d.write("admin.token", fmt.Appendln(nil, token), 0o600); err != nil {
		return "", err
	}
	return token, nil
}
