package member

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"lode"
)

// The files of the identity's folder. node.pem is written last: without it
// there is no identity yet.
const (
	fileCA    = "ca.pem"
	fileKey   = "node.key"
	fileCert  = "node.pem"
	filePeers = "peers.json"
)

// writeFile replaces a file durably: a reader sees the old or the new one,
// also after a loss of power.
func writeFile(dir, name string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(dir, "."+name+"-*")
	if err != nil {
		return lode.Errorf(lode.Full, "write %s: %w", filepath.Join(dir, name), err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return lode.Errorf(lode.Full, "write %s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
