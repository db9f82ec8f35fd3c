package bench

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"lode"
)

// goSources are the .go files of this machine's Go.
func goSources() ([]string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, lode.Errorf(lode.Unavailable, "find Go's source tree: %w", err).WithHint("this needs the Go toolchain: https://go.dev/dl")
	}
	root := filepath.Join(strings.TrimSpace(string(out)), "src")
	return below(root, ".go")
}

// mailFiles are the SpamAssassin mails that the set-up script fetched: below
// .cache of the working directory, or LODE_CORPUS.
func mailFiles() ([]string, error) {
	root := os.Getenv("LODE_CORPUS")
	if root == "" {
		root = filepath.Join(".cache", "mails")
	}
	files, err := below(root, ".txt")
	if err == nil && len(files) == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, lode.Errorf(lode.NotFound, "the mails are not in %s: %w", root, err).WithHint("run `make setup-demo` in the project's folder, and start from there")
	}
	return files, nil
}

// below lists the regular files with a suffix, as absolute paths in order.
func below(root, suffix string) ([]string, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	var out []string
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() && strings.HasSuffix(path, suffix) {
			out = append(out, path)
		}
		return nil
	})
	return out, err
}
