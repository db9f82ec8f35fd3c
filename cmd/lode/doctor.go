package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lode/api"
)

func (c *cli) doctorCmd() *cobra.Command {
	var dir string
	var whole bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check this machine, and the node on it", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				dir = c.dataDir()
			}
			if !whole {
				return c.showChecks(c.examine(cmd.Context(), dir), false)
			}
			client, err := c.api()
			if err != nil {
				return err
			}
			l, err := client.DoctorCluster(cmd.Context())
			if err != nil {
				return err
			}
			return c.showChecks(l.Items, true)
		},
	}
	cmd.Flags().BoolVar(&whole, "cluster", false, "every node of the cluster, and the cluster as a whole, instead of this machine")
	cmd.Flags().StringVarP(&dir, "dir", "d", "", "data folder to check (LODE_DIR)")
	return cmd
}

// showChecks prints checks, with the nodes that they are of; one that failed is
// exit code 1.
func (c *cli) showChecks(checks []api.Check, nodes bool) error {
	t := &table{}
	failed := false
	add := func(node string, cells ...string) {
		if nodes {
			cells = append([]string{cells[0], node}, cells[1:]...)
		}
		t.add(cells...)
	}
	for _, k := range checks {
		add(first(k.Node, "cluster"), k.State, k.Name, k.Detail)
		if k.State != api.CheckOK {
			add("", "", "", "-> "+k.Advice)
		}
		failed = failed || k.State == api.CheckFail
	}
	if err := c.show(api.List[api.Check]{Items: orEmpty(checks)}, t); err != nil {
		return err
	}
	if failed {
		return exitCode(1)
	}
	return nil
}

// examine runs every check, and asks the node if there is one.
func (c *cli) examine(ctx context.Context, dir string) []api.Check {
	checks := []api.Check{checkOS()}
	checks = append(checks, systemChecks()...)
	checks = append(checks, checkClock(), checkDisk(dir))
	checks = append(checks, c.checkNode(ctx)...)
	checks = append(checks, checkTool("go", "Go functions", "install Go 1.26 or newer from https://go.dev/dl"),
		checkTool("clang", "C functions", "install clang and lld (Debian: apt-get install clang lld)"))
	return append(checks, api.Check{Name: "gpu", State: api.CheckOK, Detail: "not used by this version"})
}

func good(name, format string, args ...any) api.Check {
	return api.Check{Name: name, State: api.CheckOK, Detail: fmt.Sprintf(format, args...)}
}

func bad(state, name, advice, format string, args ...any) api.Check {
	return api.Check{Name: name, State: state, Advice: advice, Detail: fmt.Sprintf(format, args...)}
}

func checkOS() api.Check {
	what := runtime.GOOS + "/" + runtime.GOARCH
	switch runtime.GOOS {
	case "linux":
		return good("system", "%s, %d cores", what, runtime.NumCPU())
	case "darwin":
		return bad(api.CheckWarn, "system", "use Linux where speed matters: sandboxes are reset more slowly here", "%s, %d cores", what, runtime.NumCPU())
	}
	return bad(api.CheckFail, "system", "use Linux or macOS", "%s is not supported", what)
}

// checkClock compares the wall clock with what no clock may be before: the
// time of the binary. Schedules and tokens go by it.
func checkClock() api.Check {
	now := time.Now()
	self, err := os.Executable()
	if err != nil {
		return good("clock", "%s", now.UTC().Format(time.RFC3339))
	}
	if info, err := os.Stat(self); err == nil && now.Before(info.ModTime().Add(-time.Hour)) {
		return bad(api.CheckFail, "clock", "set the clock: timedatectl set-ntp true", "it is %s, before this program was made", now.UTC().Format(time.RFC3339))
	}
	return good("clock", "%s", now.UTC().Format(time.RFC3339))
}

const (
	slowSync = 20 * time.Millisecond
	lowSpace = 1 << 30
)

// checkDisk measures what each acknowledged write waits for.
func checkDisk(dir string) api.Check {
	probe := dir
	for {
		if info, err := os.Stat(probe); err == nil && info.IsDir() {
			break
		}
		if probe == filepath.Dir(probe) {
			break
		}
		probe = filepath.Dir(probe)
	}
	f, err := os.CreateTemp(probe, ".lode-doctor-*")
	if err != nil {
		return bad(api.CheckFail, "disk", "choose another data folder: lode up -d DIR", "nothing can be written in %s: %v", probe, errors.Unwrap(err))
	}
	defer os.Remove(f.Name())
	defer f.Close()
	times := make([]time.Duration, 9)
	for i := range times {
		start := time.Now()
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return bad(api.CheckFail, "disk", "make room, or choose another data folder", "%s: %v", probe, err)
		}
		if err := f.Sync(); err != nil {
			return bad(api.CheckFail, "disk", "choose another data folder", "%s cannot be synced: %v", probe, err)
		}
		times[i] = time.Since(start)
	}
	mid := median(times)
	free, known := freeBytes(probe)
	room := ""
	if known {
		room = ", " + size(free) + " free"
	}
	switch {
	case known && free < lowSpace:
		return bad(api.CheckWarn, "disk", "make room: a full disk refuses deploys, uploads and queued calls (507)", "%s: fsync %s%s", probe, span(mid), room)
	case mid > slowSync:
		return bad(api.CheckWarn, "disk", "put the data folder on an SSD: each acknowledged write waits for this", "%s: fsync %s%s", probe, span(mid), room)
	}
	return good("disk", "%s: fsync %s%s", probe, span(mid), room)
}

func median(d []time.Duration) time.Duration {
	for i := range d {
		for j := i; j > 0 && d[j] < d[j-1]; j-- {
			d[j], d[j-1] = d[j-1], d[j]
		}
	}
	return d[len(d)/2]
}

// checkNode asks the node, or finds out whether its ports are free.
func (c *cli) checkNode(ctx context.Context) []api.Check {
	client, err := c.api()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		var l api.List[api.Check]
		if l, err = client.Doctor(ctx); err == nil {
			return append([]api.Check{good("node", "answers at %s", client.URL())}, l.Items...)
		}
		if !api.Unreachable(err) {
			return []api.Check{bad(api.CheckFail, "node", "lode login URL saves a token that works", "%s does not let us in: %v", client.URL(), err)}
		}
	}
	out := []api.Check{bad(api.CheckWarn, "node", "lode dev starts a throw-away one, lode up one that stays", "none answers")}
	for i, what := range []string{"gateway", "peers", "bus"} {
		addr := "127.0.0.1:" + strconv.Itoa(stdPort+i)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			out = append(out, bad(api.CheckFail, "port", "stop what listens there, or choose others: lode up --port N", "%s (%s) is taken: %v", addr, what, cause(err)))
			continue
		}
		l.Close()
	}
	return out
}

// cause is the innermost error.
func cause(err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}

func checkTool(name, what, advice string) api.Check {
	path, err := exec.LookPath(name)
	if err != nil {
		return bad(api.CheckWarn, name, advice, "not found; needed to build %s", what)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	arg := "--version"
	if name == "go" {
		arg = "version"
	}
	out, err := exec.CommandContext(ctx, path, arg).Output()
	if err != nil {
		return bad(api.CheckWarn, name, advice, "%s does not run: %v", path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return good(name, "%s", strings.TrimSpace(line))
}
