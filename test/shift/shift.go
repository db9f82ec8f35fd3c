// Package shift builds the command with a wall clock that is off, for tests of
// what wrong clocks do to real nodes. Nothing but tests may import it.
package shift

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Variable is the environment variable that says by how many seconds the clock
// of a command that Build made is off; it may be negative.
const Variable = "LODE_TEST_CLOCK"

// Keep has a home folder say so instead: to the node's workers nothing else is
// handed down.
func Keep(home, seconds string) error {
	return os.WriteFile(filepath.Join(home, homeFile), []byte(seconds), 0o644)
}

const homeFile = "lode-test-clock"

// ErrCannot is inside the error of Build where this toolchain does not allow
// it.
var ErrCannot = errors.New("the clock of this version of Go cannot be shifted")

const (
	now  = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	read = `package time

import "syscall"

var testShift = readShift()

func readShift() (n int64) {
	s, ok := syscall.Getenv("` + Variable + `")
	if home, _ := syscall.Getenv("HOME"); !ok && home != "" {
		if fd, err := syscall.Open(home+"/` + homeFile + `", syscall.O_RDONLY, 0); err == nil {
			b := make([]byte, 32)
			if n, err := syscall.Read(fd, b); err == nil {
				s = string(b[:n])
			}
			syscall.Close(fd)
		}
	}
	sign := int64(1)
	for i := range len(s) {
		if s[i] == '-' {
			sign = -1
			continue
		}
		n = n*10 + int64(s[i]-'0')
	}
	return sign * n
}
`
)

// Build builds the command in dir and returns its path. Libraries that shift
// the clock from outside do not reach a Go program, which asks the kernel
// without the C library; so the one function of the standard library that reads
// the clock is replaced at the build. The monotonic clock, and with it every
// timeout, is left alone, as it is when somebody sets the clock.
func Build(dir string) (bin string, err error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("%w: no go toolchain: %w", ErrCannot, err)
	}
	file := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrCannot, err)
	}
	text := strings.Replace(string(b), now, now+"\tsec += testShift\n", 1)
	if text == string(b) {
		return "", ErrCannot
	}
	replaced, added, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "shift.go"), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {file: replaced, filepath.Join(filepath.Dir(file), "shift.go"): added}})
	if err != nil {
		return "", err
	}
	for path, content := range map[string]string{replaced: text, added: read, overlay: string(list)} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return "", err
		}
	}
	bin = filepath.Join(dir, "lode")
	if out, err := exec.Command("go", "build", "-overlay", overlay, "-o", bin, "lode/cmd/lode").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the command: %w\n%s", err, out)
	}
	return bin, nil
}
