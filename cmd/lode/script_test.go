package main

import (
	"context"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

var (
	update = flag.Bool("update", false, "write what scripts compare with")
	nodes  = flag.Bool("node", true, "run the scripts that start a node")
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lode": main})
}

// TestScripts runs testdata/script/*.txtar: each in a home of its own.
// Scripts with [node] in their first lines start a real node.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("XDG_CONFIG_HOME", "")
			e.Setenv("XDG_DATA_HOME", "")
			e.Setenv("XDG_STATE_HOME", "")
			e.Setenv("LODE_DIR", filepath.Join(e.WorkDir, "data"))
			e.Setenv("LODE_URL", "http://127.0.0.1:1") // nobody is there
			for _, k := range []string{"GOCACHE", "GOMODCACHE", "GOPROXY", "GOFLAGS"} {
				e.Setenv(k, goEnv(k))
			}
			// Builds are kept between runs: a cache may be removed at any time.
			cache, err := os.UserCacheDir()
			if err != nil {
				return err
			}
			e.Setenv("XDG_CACHE_HOME", cache)
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "node" {
				return *nodes && !testing.Short(), nil
			}
			return false, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"ready": ready, "eventually": eventually},
	})
}

func goEnv(key string) string {
	if v := os.Getenv(key); v != "" {
		return v
	}
	home, _ := os.UserHomeDir()
	switch key {
	case "GOCACHE":
		cache, _ := os.UserCacheDir()
		return filepath.Join(cache, "go-build")
	case "GOMODCACHE":
		return filepath.Join(home, "go", "pkg", "mod")
	}
	return ""
}

// ready waits for the ready line of a node in the background, whose stderr is
// in a file and whose process id is in the file pid, and points LODE_URL at it:
// ready FILE. A node that the script leaves running is killed.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	ts.Defer(func() {
		if pid, err := strconv.Atoi(strings.TrimSpace(read(ts, "pid"))); err == nil {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	line := regexp.MustCompile(`ready: (http://\S+)`)
	for range 400 {
		if m := line.FindStringSubmatch(read(ts, args[0])); m != nil {
			ts.Setenv("LODE_URL", m[1])
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("no ready line in %s: %s", args[0], read(ts, args[0]))
}

// eventually waits until a file holds a regular expression: eventually FILE RE.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	re := regexp.MustCompile(args[1])
	for range 600 {
		if re.MatchString(read(ts, args[0])) != neg {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("%s never matched %s:\n%s", args[0], args[1], read(ts, args[0]))
}

func read(ts *testscript.TestScript, file string) string {
	b, err := os.ReadFile(ts.MkAbs(file))
	if err != nil {
		return ""
	}
	return string(b)
}

// TestHelp reads every command's help: each says what it is for, and no line
// is wider than a screen can show.
func TestHelp(t *testing.T) {
	c := &cli{in: strings.NewReader(""), out: io.Discard, err: io.Discard, getenv: func(string) string { return "" }, release: func() {}}
	root := c.root()
	for _, cmd := range root.Commands() {
		if cmd.Short == "" && !cmd.Hidden {
			t.Errorf("%s says nothing of itself", cmd.Name())
		}
		for line := range strings.Lines(cmd.Long) {
			if len(line) > 100 {
				t.Errorf("%s: a line of help has %d bytes: %s", cmd.Name(), len(line), line)
			}
		}
	}
	root.SetArgs([]string{"help"})
	root.SetOut(io.Discard)
	if err := root.ExecuteContext(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestWords(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 11 << 10: "11 KiB", 1288490188: "1.2 GiB", 1 << 20: "1.0 MiB", (1 << 20) - 1: "1.0 MiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0 us", 1500 * time.Microsecond: "1.5 ms", 30 * time.Second: "30 s", 820 * time.Millisecond: "820 ms", 90 * time.Second: "1 min", 50 * time.Hour: "2 d"} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1204: "1,204", -1204: "-1,204", 1234567: "1,234,567"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestArguments(t *testing.T) {
	for word, want := range map[string]string{"2": "2", "book": `"book"`, `{"a":1}`: `{"a":1}`, "true": "true", "free offer": `"free offer"`, "": `""`, `"x"`: `"x"`} {
		if got := string(argument(word)); got != want {
			t.Errorf("%q becomes %s, want %s", word, got, want)
		}
	}
}
