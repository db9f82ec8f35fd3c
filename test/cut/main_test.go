//go:build linux

package cut

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"lode/cmd/build"
	"lode/test/child"
)

// lab is what the tests of this package share: the command, and a guest for it,
// built once, in a folder that a later run can tell to be left over.
var lab struct {
	dir   string
	lode  string
	guest func() (build.Artifact, error)
}

// labPrefix is how folders and namespaces of these tests begin; the id of the
// process follows.
const labPrefix = "lodecut-"

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		log.Print(err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	sweepLeftovers()
	if lab.dir, err = os.MkdirTemp("", fmt.Sprintf("%s%d-", labPrefix, os.Getpid())); err != nil {
		return 1, err
	}
	defer removeFolder(lab.dir)
	if unable() == "" {
		lab.lode = filepath.Join(lab.dir, "lode")
		build := exec.Command("go", "build", "-o", lab.lode, "lode/cmd/lode")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build the command: %w\n%s", err, out)
		}
	}
	lab.guest = sync.OnceValues(func() (build.Artifact, error) {
		as, err := build.Build(context.Background(), build.Source{Path: "testdata/lab", Name: "web", Cache: filepath.Join(lab.dir, "cache")})
		if err != nil {
			return build.Artifact{}, err
		}
		return as[0], nil
	})
	return m.Run(), nil
}

// unable says why these tests cannot run here, "" if they can.
var unable = sync.OnceValue(func() string {
	if os.Geteuid() != 0 {
		return "only root may make network namespaces"
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return "the tool ip is not here"
	}
	name := fmt.Sprintf("%s%d-probe", labPrefix, os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		return fmt.Sprintf("no network namespace can be made: %s", strings.TrimSpace(string(out)))
	}
	defer exec.Command("ip", "netns", "del", name).Run()
	for _, args := range [][]string{{"link", "add", "switch", "type", "bridge"}, {"link", "add", "one", "type", "veth", "peer", "name", "other"}} {
		if out, err := exec.Command("ip", append([]string{"-n", name}, args...)...).CombinedOutput(); err != nil {
			return fmt.Sprintf("ip %s: %s", strings.Join(args, " "), strings.TrimSpace(string(out)))
		}
	}
	return ""
})

// long says whether there is time for long rounds.
func long() bool { return os.Getenv("LODE_LONG") != "" }

// startIn starts cmd in a network namespace, so that it cannot outlive the
// tests.
func startIn(space string, cmd *exec.Cmd) error {
	return child.StartBy(cmd, func(start func() error) error { return enter(space, start) })
}

var leftover = regexp.MustCompile(labPrefix + `(\d+)-`)

// dead reports whether a name is of a run of these tests that is over.
func dead(name string) bool {
	m := leftover.FindStringSubmatch(name)
	if m == nil {
		return false
	}
	pid, err := strconv.Atoi(m[1])
	return err == nil && pid != os.Getpid() && syscall.Kill(pid, 0) == syscall.ESRCH
}

// sweepLeftovers removes what former runs left that were killed: their children
// died with them, but not their namespaces and small disks.
func sweepLeftovers() {
	if os.Geteuid() != 0 {
		return
	}
	spaces, _ := os.ReadDir("/run/netns")
	for _, s := range spaces {
		if dead(s.Name()) {
			dropSpace(s.Name())
		}
	}
	folders, _ := os.ReadDir(os.TempDir())
	for _, f := range folders {
		if dead(f.Name()) {
			removeFolder(filepath.Join(os.TempDir(), f.Name()))
		}
	}
}

// removeFolder removes a folder with the disks that are mounted in it.
func removeFolder(dir string) {
	b, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
	os.RemoveAll(dir)
}

// removeScratch removes what a node that was killed left in memory.
func removeScratch(data string) {
	sum := blake3.Sum256([]byte(data))
	os.RemoveAll(fmt.Sprintf("/dev/shm/lode-%d-%x", os.Getuid(), sum[:8]))
}

// patience bounds every wait for something that must come.
const patience = 90 * time.Second

// waitFor polls until cond holds.
func waitFor(t *testing.T, what string, cond func() bool) time.Duration {
	t.Helper()
	return waitForElse(t, cond, func() string { return what })
}

// waitForElse is waitFor whose failure says what was last the matter.
func waitForElse(t *testing.T, cond func() bool, what func() string) time.Duration {
	t.Helper()
	began := time.Now()
	for time.Since(began) < patience {
		if cond() {
			return time.Since(began)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what())
	return 0
}
