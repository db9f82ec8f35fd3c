//go:build linux

package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lab is what the tests of this package share: the command, and programs for
// it, built once.
var lab struct {
	dir  string
	lode string
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if lab.dir, err = os.MkdirTemp("", "lode-test-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(lab.dir)
	lab.lode = filepath.Join(lab.dir, "lode")
	build := exec.Command("go", "build", "-o", lab.lode, "lode/cmd/lode")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the command: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// long says whether there is time for long rounds.
func long() bool { return os.Getenv("LODE_LONG") != "" }

// rounds is how often a crash test kills the node.
func rounds(short int) int {
	if long() {
		return 6 * short
	}
	return short
}

// clean is the environment without what a user's own settings add.
func clean(extra ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LODE_") && !strings.HasPrefix(kv, "OTEL_") && !strings.HasPrefix(kv, "HTTP_PROXY") && !strings.HasPrefix(kv, "http_proxy") {
			env = append(env, kv)
		}
	}
	return append(env, extra...)
}
