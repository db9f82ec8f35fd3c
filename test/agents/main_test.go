//go:build linux

package agents

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// lab is what the tests of this package share: a folder, and the command.
var lab struct{ dir, lode string }

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if lab.dir, err = os.MkdirTemp("", "lode-agents-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(lab.dir)
	lab.lode = filepath.Join(lab.dir, "lode")
	if out, err := exec.Command("go", "build", "-o", lab.lode, "lode/cmd/lode").CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the command: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// scale is short, or many where there is time.
func scale(short, many int) int {
	if os.Getenv("LODE_LONG") != "" {
		return many
	}
	return short
}
