package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"lode"
)

// Child runs one side of a comparison in a process of its own: `lode bench
// child ROLE ARG...`. It is for the benches, not for people.
func Child(ctx context.Context, role string, args []string, stdout io.Writer) error {
	switch role {
	case "httpd":
		return bareServer(ctx, stdout)
	case "words":
		return plainWords(args, stdout)
	case "words-nodigits":
		return plainNoDigits(args, stdout)
	case "spam":
		return plainSpam(args, stdout)
	case "tcp-echo":
		return tcpEcho(ctx, stdout)
	case "link-echo":
		return linkEcho(ctx, args, stdout)
	case "agents-node":
		return agentsNode(ctx, args, os.Stdin, stdout)
	}
	return lode.Errorf(lode.NotFound, "no child role %q", role)
}

// bareServer is the other side of bench invoke: Go's net/http with the handler
// that the guests have, and nothing else. It prints its address.
func bareServer(ctx context.Context, stdout io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return lode.Errorf(lode.Unavailable, "listen: %w", err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		h := fnv.New32a()
		h.Write(body)
		fmt.Fprintf(w, "%08x\n", h.Sum32())
	})}
	fmt.Fprintln(stdout, l.Addr())
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// process is a child that the bench started and must stop.
type process struct {
	cmd   *exec.Cmd
	first string // first line that it printed
}

// launch runs the binary with args.
func (r *runner) launch(ctx context.Context, args ...string) (*process, error) {
	cmd := exec.CommandContext(ctx, r.Self, args...)
	cmd.Stderr = r.stderr()
	if err := cmd.Start(); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "start %s %s: %w", r.Self, strings.Join(args, " "), err)
	}
	return &process{cmd: cmd}, nil
}

// start runs the binary with args and waits for its first line, or for 20 s.
func (r *runner) start(ctx context.Context, args ...string) (*process, error) {
	cmd := exec.CommandContext(ctx, r.Self, args...)
	cmd.Stderr = r.stderr()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "start %s %s: %w", r.Self, strings.Join(args, " "), err)
	}
	line := make(chan string, 1)
	go func() {
		s := bufio.NewScanner(out)
		if s.Scan() {
			line <- s.Text()
		}
		close(line)
		io.Copy(io.Discard, out)
	}()
	p := &process{cmd: cmd}
	select {
	case l, ok := <-line:
		if !ok {
			p.stop()
			return nil, lode.Errorf(lode.Unavailable, "%s %s ended before it was ready", r.Self, strings.Join(args, " "))
		}
		p.first = l
	case <-time.After(20 * time.Second):
		p.stop()
		return nil, lode.Errorf(lode.Deadline, "%s %s was not ready in 20 s", r.Self, strings.Join(args, " "))
	}
	return p, nil
}

func (r *runner) stderr() io.Writer {
	if os.Getenv("LODE_BENCH_DEBUG") != "" {
		return os.Stderr
	}
	return nil
}

// stop ends the child: SIGTERM, and after 10 s SIGKILL.
func (p *process) stop() {
	if p == nil || p.cmd.Process == nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.AfterFunc(10*time.Second, func() { p.cmd.Process.Kill() })
	p.cmd.Wait()
	t.Stop()
}

// cpu is the user and system time that the child has used so far.
func (p *process) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	var u, s int64
	fmt.Sscan(f[11], &u)
	fmt.Sscan(f[12], &s)
	return time.Duration(u+s) * 10 * time.Millisecond // USER_HZ is 100 on every Linux
}

// rss is the child's resident memory in bytes.
func (p *process) rss() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	var size, pages int64
	fmt.Sscan(string(b), &size, &pages)
	return pages * int64(os.Getpagesize())
}

// plainWords counts the words of the files named in args[0] (one path a line):
// what a Go programmer writes who has all data on one machine. A word is a run
// of bytes without ASCII white space.
func plainWords(args []string, stdout io.Writer) error {
	counts, err := overFiles(args, func(_ string, b []byte, m map[string]int) { addWords(b, m) })
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(counts)
}

// plainNoDigits counts only words without a digit.
func plainNoDigits(args []string, stdout io.Writer) error {
	counts, err := overFiles(args, func(_ string, b []byte, m map[string]int) { addWords(b, m) })
	if err != nil {
		return err
	}
	for w := range counts {
		if strings.ContainsAny(w, "0123456789") {
			delete(counts, w)
		}
	}
	return json.NewEncoder(stdout).Encode(counts)
}

// plainSpam counts words by label: the label is the first folder of a mail's
// name without its number.
func plainSpam(args []string, stdout io.Writer) error {
	counts, err := overFiles(args, func(name string, b []byte, m map[string]int) { addLabelled(label(name), b, m) })
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(counts)
}

// overFiles runs f over every file named in the list file, on all cores, each
// with a map of its own, and adds the maps up.
func overFiles(args []string, f func(name string, b []byte, m map[string]int)) (map[string]int, error) {
	if len(args) != 1 {
		return nil, lode.Errorf(lode.Invalid, "want one argument: a file with one path a line")
	}
	list, err := os.ReadFile(args[0])
	if err != nil {
		return nil, lode.Errorf(lode.NotFound, "%w", err)
	}
	names := make(chan string, 256)
	go func() {
		for name := range strings.Lines(string(list)) {
			names <- strings.TrimSuffix(name, "\n")
		}
		close(names)
	}()
	maps := make([]map[string]int, runtime.NumCPU())
	errs := make([]error, len(maps))
	var wg sync.WaitGroup
	for i := range maps {
		maps[i] = map[string]int{}
		wg.Go(func() {
			for name := range names {
				b, err := os.ReadFile(name)
				if err != nil {
					errs[i] = err
					continue
				}
				f(name, b, maps[i])
			}
		})
	}
	wg.Wait()
	for i, m := range maps {
		if errs[i] != nil {
			return nil, errs[i]
		}
		if i > 0 {
			for k, n := range m {
				maps[0][k] += n
			}
		}
	}
	return maps[0], nil
}

func addWords(b []byte, m map[string]int) {
	start := -1
	for i, c := range b {
		if c == ' ' || c-'\t' < 5 {
			if start >= 0 {
				add(m, b[start:i])
				start = -1
			}
		} else if start < 0 {
			start = i
		}
	}
	if start >= 0 {
		add(m, b[start:])
	}
}

// add counts one word. Bytes that are not UTF-8 would not survive JSON: each
// becomes U+FFFD, here as in the SDKs.
func add(m map[string]int, word []byte) {
	if !utf8.Valid(word) {
		word = []byte(string([]rune(string(word))))
	}
	m[string(word)]++
}

func addLabelled(label string, b []byte, m map[string]int) {
	words := map[string]int{}
	addWords(b, words)
	for w, n := range words {
		m[label+" "+w] += n
	}
}

// label is "ham" or "spam" from ".../easy-ham-1/0001.txt".
func label(name string) string {
	if strings.Contains(name, "ham-") {
		return "ham"
	}
	return "spam"
}
