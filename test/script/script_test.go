//go:build linux

package script

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"lode/test/child"
)

var bin string // the folder of the command

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "lode-script-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	bin = dir
	code := 1
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "lode"), "lode/cmd/lode").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the command: %v\n%s", err, out)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// TestScripts runs testdata/*.txtar. Beside testscript's own commands there
// are: up [FLAG...], which starts a node in $WORK/data and points the command
// at it; down, which stops it as Ctrl-C does; crash, which kills it; until
// REGEXP COMMAND..., which repeats a command until its output matches; and
// code N COMMAND..., which wants an exit code.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			for k, v := range map[string]string{"HOME": home, "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": "", "PATH": bin + ":" + os.Getenv("PATH"),
				"GOCACHE": goEnv("GOCACHE"), "GOMODCACHE": goEnv("GOMODCACHE"), "GOPROXY": goEnv("GOPROXY"), "GOFLAGS": "", "NO_COLOR": "1"} {
				e.Setenv(k, v)
			}
			cache, err := os.UserCacheDir()
			e.Setenv("XDG_CACHE_HOME", cache)
			e.Values[key{}] = &node{}
			return err
		},
		Condition: func(cond string) (bool, error) {
			_, err := exec.LookPath(cond)
			return err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"up": up, "down": down, "crash": crash, "until": until, "code": code},
	})
}

func goEnv(name string) string {
	out, _ := exec.Command("go", "env", name).Output()
	return strings.TrimSpace(string(out))
}

type key struct{}

// node is the node of one script.
type node struct {
	cmd  *exec.Cmd
	done chan struct{}
	said child.Transcript
}

var readyLine = regexp.MustCompile(`ready: (http://\S+)`)

func up(ts *testscript.TestScript, neg bool, args []string) {
	n := ts.Value(key{}).(*node)
	n.said.Reset()
	n.cmd = exec.Command(filepath.Join(bin, "lode"), append([]string{"up", "-d", ts.MkAbs("data"), "--port", "0"}, args...)...)
	n.cmd.Stderr = &n.said
	for _, k := range []string{"HOME", "PATH", "XDG_CACHE_HOME"} {
		n.cmd.Env = append(n.cmd.Env, k+"="+ts.Getenv(k))
	}
	ts.Check(child.Start(n.cmd))
	n.done = make(chan struct{})
	cmd, done := n.cmd, n.done
	go func() { cmd.Wait(); close(done) }()
	ts.Defer(func() { cmd.Process.Kill(); <-done })
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if m := readyLine.FindStringSubmatch(n.said.String()); m != nil {
			ts.Setenv("URL", m[1])
			return
		}
		select {
		case <-done:
			ts.Fatalf("the node ended: %s", n.said.String())
		default:
		}
	}
	ts.Fatalf("no ready line: %s", n.said.String())
}

func down(ts *testscript.TestScript, neg bool, args []string) {
	n := ts.Value(key{}).(*node)
	ts.Check(n.cmd.Process.Signal(os.Interrupt))
	select {
	case <-n.done:
	case <-time.After(time.Minute):
		child.Dump(n.cmd, n.done)
		ts.Fatalf("the node does not stop: %s", n.said.String())
	}
	if c := n.cmd.ProcessState.ExitCode(); c != 0 {
		ts.Fatalf("the node ended with code %d: %s", c, n.said.String())
	}
}

func crash(ts *testscript.TestScript, neg bool, args []string) {
	n := ts.Value(key{}).(*node)
	ts.Check(n.cmd.Process.Kill())
	<-n.done
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND...")
	}
	re := regexp.MustCompile(args[0])
	var out []byte
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if out, _ = command(ts, args[1:]).CombinedOutput(); re.Match(out) != neg {
			return
		}
	}
	ts.Fatalf("never matched %s:\n%s", args[0], out)
}

func code(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND...")
	}
	cmd := command(ts, args[1:])
	out, _ := cmd.CombinedOutput()
	if got := fmt.Sprint(cmd.ProcessState.ExitCode()); (got == args[0]) == neg {
		ts.Fatalf("code %s, want %s:\n%s", got, args[0], out)
	}
}

func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	if args[0] == "lode" {
		cmd.Path, cmd.Err = filepath.Join(bin, "lode"), nil
	}
	cmd.Dir = ts.MkAbs(".")
	for _, k := range []string{"HOME", "PATH", "XDG_CACHE_HOME", "GOCACHE", "GOMODCACHE", "GOPROXY", "URL"} {
		cmd.Env = append(cmd.Env, k+"="+ts.Getenv(k))
	}
	return cmd
}
