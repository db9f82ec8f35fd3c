package store

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"lode"
)

// tree is a directory of blobs, as laid out in the package comment. The
// filesystem is its only state; known is what this process has seen of it.
type tree struct {
	root string

	mu    sync.Mutex
	known map[lode.Digest]stamp // files whose checksum was found to hold
}

// openTree makes the folders and sweeps what dead writers left in tmp.
func openTree(root string) (*tree, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, ioError("open the store", err)
	}
	t := &tree{root: root, known: map[lode.Digest]stamp{}}
	for _, dir := range []string{"blobs", "tmp", "bad"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return nil, ioError("open the store at "+root, err)
		}
	}
	if err := syncDir(root); err != nil {
		return nil, ioError("open the store at "+root, err)
	}
	if err := t.sweep(); err != nil {
		return nil, err
	}
	return t, t.forgetBad(time.Now().Add(-keepBad))
}

// seen remembers that the file with this stamp matches its name.
func (t *tree) seen(d lode.Digest, st stamp) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[d] = st
}

func (t *tree) forget(d lode.Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known, d)
}

func (t *tree) holds(d lode.Digest, st stamp) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known[d] == st
}

// open opens d's file with its checksum known to hold: NotFound, or Damaged
// for a file that does not match its name.
func (t *tree) open(ctx context.Context, d lode.Digest) (*os.File, error) {
	path := t.path(d)
	f, err := os.Open(path)
	if isMissing(err) {
		return nil, notFound(d, t.root)
	}
	if err != nil {
		return nil, ioError("open "+path, err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, ioError("stat "+path, err)
	}
	if t.holds(d, stampOf(fi)) {
		return f, nil
	}
	got, err := hashFile(ctx, f, nil)
	if err == nil && got != d {
		err = damaged(d, path, got, fi.Size())
	} else if errors.Is(err, syscall.EIO) { // a bad sector is damage like any other
		err = lode.Errorf(lode.Damaged, "blob %s is damaged at %s: %w", d, path, err)
	}
	if err != nil {
		f.Close()
		return nil, ioError("read "+path, err)
	}
	t.seen(d, stampOf(fi))
	return f, nil
}

func (t *tree) path(d lode.Digest) string {
	name := d.String()
	return filepath.Join(t.root, "blobs", name[:2], name)
}

// sweep removes temporary files whose writer is gone.
func (t *tree) sweep() error {
	dir := filepath.Join(t.root, "tmp")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ioError("sweep "+dir, err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		f, err := os.Open(path)
		if err != nil {
			continue // its writer has just renamed it
		}
		if lockFile(f) == nil {
			os.Remove(path)
		}
		f.Close()
	}
	return nil
}

// keepBad is how long a damaged copy is kept for a look at it.
const keepBad = 7 * 24 * time.Hour

// forgetBad removes quarantined copies that were moved there before.
func (t *tree) forgetBad(before time.Time) error {
	dir := filepath.Join(t.root, "bad")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ioError("sweep "+dir, err)
	}
	for _, e := range entries {
		_, at, _ := strings.Cut(e.Name(), ".")
		nanos, err := strconv.ParseInt(at, 10, 64)
		if err == nil && time.Unix(0, nanos).Before(before) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	return nil
}

// adopt gives the synced file at path the name of d, durably if sync is set; a
// new folder (there are 256) is durable in any case.
func (t *tree) adopt(path string, d lode.Digest, sync bool) error {
	to := t.path(d)
	dir := filepath.Dir(to)
	if err := os.Mkdir(dir, 0o755); err == nil {
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return err
		}
	} else if err != nil && !os.IsExist(err) {
		return err
	}
	if err := os.Rename(path, to); err != nil {
		return err
	}
	if !sync {
		return nil
	}
	return syncDir(dir)
}

// syncNames makes d's name durable.
func (t *tree) syncNames(d lode.Digest) error { return syncDir(filepath.Dir(t.path(d))) }

func (t *tree) stat(d lode.Digest) (Info, error) {
	path := t.path(d)
	fi, err := os.Stat(path)
	if isMissing(err) {
		return Info{}, notFound(d, t.root)
	}
	if err != nil {
		return Info{}, ioError("stat "+path, err)
	}
	return Info{Digest: d, Size: fi.Size(), Modified: fi.ModTime()}, nil
}

func (t *tree) remove(d lode.Digest) error {
	t.forget(d)
	path := t.path(d)
	if err := os.Remove(path); err != nil && !isMissing(err) {
		return ioError("delete "+path, err)
	}
	return nil
}

// quarantine moves a bad copy out of the way and returns where it went.
func (t *tree) quarantine(d lode.Digest, now time.Time) (string, error) {
	t.forget(d)
	to := filepath.Join(t.root, "bad", d.String()+"."+strconv.FormatInt(now.UnixNano(), 10))
	if err := os.Rename(t.path(d), to); err != nil && !isMissing(err) {
		return "", ioError("quarantine "+t.path(d), err)
	}
	return to, nil
}

// bad is where a bad copy of d was moved to, or "".
func (t *tree) bad(d lode.Digest) string {
	found, err := filepath.Glob(filepath.Join(t.root, "bad", d.String()+".*"))
	if err != nil || len(found) == 0 {
		return ""
	}
	return found[len(found)-1]
}

// list yields the blobs; files whose name is no digest are not ours and are
// passed over.
func (t *tree) list(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		root := filepath.Join(t.root, "blobs")
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if isMissing(err) {
				return nil
			}
			if err != nil || e.IsDir() {
				return err
			}
			d, ok := parseDigest(e.Name())
			if !ok {
				return nil
			}
			fi, err := e.Info()
			if isMissing(err) {
				return nil // deleted meanwhile
			}
			if err != nil {
				return err
			}
			if !yield(Info{Digest: d, Size: fi.Size(), Modified: fi.ModTime()}, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(Info{}, ioError("list "+root, err))
		}
	}
}

// parseDigest reads 64 lower-case hexadecimal digits.
func parseDigest(s string) (lode.Digest, bool) {
	var d lode.Digest
	if len(s) != 64 {
		return d, false
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil || d.String() != s {
		return d, false
	}
	return d, true
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
