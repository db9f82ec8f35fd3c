package examples_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"lode/api"
)

// bin is a folder with the command, built without the race detector.
var bin = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lode-examples-")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "lode"), "lode/cmd/lode").CombinedOutput()
	if err != nil {
		os.Stderr.Write(out)
	}
	return dir, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built {
		dir, _ := bin()
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

var built bool

// process is a node in a process of its own: one that can be killed.
type process struct {
	*house
	token string
	cmd   *exec.Cmd
	read  sync.WaitGroup
}

// launch runs lode up on a data folder.
func launch(t *testing.T, data string) *process {
	t.Helper()
	built = true
	dir, err := bin()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(filepath.Join(dir, "lode"), "up", "--port", "0", "-d", data)}
	p.cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+t.TempDir()) // the user's own node stays the one that commands find
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	lines, url := bufio.NewScanner(out), ""
	for url == "" && lines.Scan() {
		if _, rest, ok := strings.Cut(lines.Text(), "is ready: "); ok {
			url = strings.Fields(rest)[0]
		}
	}
	p.read.Go(func() {
		for lines.Scan() {
		}
	})
	b, err := os.ReadFile(filepath.Join(data, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	p.token = strings.TrimSpace(string(b))
	c, err := api.New(api.Config{URL: url, Token: p.token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	p.house = &house{url, c}
	return p
}

// kill ends it at once, as kill -9 does. It may be called again.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	p.read.Wait()
	_ = p.cmd.Wait()
}

// TestCommit2 kills the node between the phases of a two-phase commit.
func TestCommit2(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the command")
	}
	data := filepath.Join(t.TempDir(), "data")
	p := launch(t, data)
	p.deploy(t, copied(t, "commit2"))
	p.tell(t, "account/ann", "deposit", "[100]")
	p.tell(t, "transfer/t1", "start", `[{"from":"ann","to":"bob","amount":30}]`)
	p.becomes(t, "transfer/t1", "show", "committed")
	p.tell(t, "transfer/t2", "start", `[{"from":"ann","to":"bob","amount":80}]`)
	p.becomes(t, "transfer/t2", "show", `{"phase":"aborted","why":"ann has 70 free, not 80"}`)
	p.tell(t, "transfer/t3", "start", `[{"from":"ann","to":"bob","amount":5,"hold_ms":3000}]`)
	p.becomes(t, "transfer/t3", "show", "prepared")
	want(t, p.tell(t, "account/ann", "show", "[]"), `{"balance":70,"pending":{"t3":-5}}`)
	p.kill()

	p = launch(t, data)
	p.becomes(t, "transfer/t3", "show", "committed")
	p.becomes(t, "account/ann", "show", `{"balance":65,"pending":{}}`)
	p.becomes(t, "account/bob", "show", `{"balance":35,"pending":{}}`)
}

// TestAgentsPage does what docs/agents.md says: it writes the files whose
// blocks begin with a comment that is their path, and runs the commands of the
// console blocks, whose answers are to be those of the page. "..." stands for
// anything.
func TestAgentsPage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the command")
	}
	home := t.TempDir()
	p := launch(t, filepath.Join(home, "data"))
	dir, _ := bin()
	ran := 0
	for _, b := range blocks(page(t, "agents.md")) {
		if path, ok := b.path(); ok {
			path = filepath.Join(home, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(b.text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if b.language != "console" {
			continue
		}
		for _, c := range b.commands() {
			cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "sh", "-c", strings.ReplaceAll(c.line, "localhost:5633", strings.TrimPrefix(p.url, "http://")))
			cmd.Dir = home
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "LODE_URL="+p.url, "LODE_TOKEN="+p.token)
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			_ = cmd.Run() // some are to fail
			out := stdout.String()
			if out == "" {
				out = stderr.String()
			}
			t.Logf("$ %s\n%s", c.line, out)
			if ran++; !like(out, c.answer) {
				t.Errorf("$ %s\n%s\nthe page says:\n%s", c.line, out, c.answer)
			}
		}
	}
	if ran < 20 {
		t.Errorf("only %d commands were found", ran)
	}
}

// block is a fenced block of a page.
type block struct{ language, text string }

func blocks(text string) (out []block) {
	parts := strings.Split("\n"+text, "\n```")
	for i := 1; i < len(parts); i += 2 {
		language, body, _ := strings.Cut(parts[i], "\n")
		out = append(out, block{language, body + "\n"})
	}
	return out
}

// path is the file that a block is, if its first line says so.
func (b *block) path() (string, bool) {
	first, _, _ := strings.Cut(b.text, "\n")
	name := strings.TrimLeft(first, "/# ")
	return name, strings.Contains(name, "/") && !strings.Contains(name, " ") && b.language != "console"
}

type command struct{ line, answer string }

func (b *block) commands() (out []command) {
	for line := range strings.Lines(b.text) {
		if rest, ok := strings.CutPrefix(line, "$ "); ok {
			rest, _, _ = strings.Cut(strings.TrimSpace(rest), "   #")
			out = append(out, command{line: rest})
		} else if len(out) > 0 {
			out[len(out)-1].answer += line
		}
	}
	return out
}

// like compares an answer with what the page says of it.
func like(got, want string) bool {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(want)), `\.\.\.`, `(?s:.*)`)
	return regexp.MustCompile("^" + strings.Join(strings.Fields(pattern), `\s+`) + "$").MatchString(strings.TrimSpace(got))
}
