package enginetest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lode"
	"lode/engine"
	"lode/sdk/abi"
)

// Digester is implemented by sandboxes that can show what a reset restored.
type Digester interface {
	// Digest is a hash of all memory and all globals.
	Digest() [32]byte
}

// Run tests a driver. newDriver makes one that the test closes.
func Run(t *testing.T, newDriver func(t testing.TB) engine.Driver) {
	d := newDriver(t)
	e := engine.New(engine.EngineConfig{Driver: d, Key: Key()})
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &suite{e: e, d: d}
	// Compiled before any test has a deadline: it takes long under the race
	// detector.
	for _, wasm := range [][]byte{C(t, "probe"), Go(t, "probe")} {
		if _, err := e.Compile(context.Background(), &Source{Wasm: wasm, Cache: true}, Limits()); err != nil {
			t.Fatal(show(err))
		}
	}
	t.Run("answers", s.answers)
	t.Run("clean", s.clean)
	t.Run("digest", s.digest)
	t.Run("crashes", s.crashes)
	t.Run("init", s.init)
	t.Run("ops", s.ops)
	t.Run("stream", s.stream)
	t.Run("files", s.files)
	t.Run("commands", s.commands)
	t.Run("go", s.goGuests)
	t.Run("reuse", s.reuse)
	t.Run("windows", s.windows)
	t.Run("hostile", s.hostile)
}

type suite struct {
	e *engine.Engine
	d engine.Driver
}

// want fails the test unless the guest answers want to body.
func want(t *testing.T, p *engine.Pool, body, want string) {
	t.Helper()
	got, _, err := Call(p, body)
	if err != nil || got != want {
		t.Errorf("%s: got %q, %v; want %q", body, got, show(err), want)
	}
}

// show prints an error with what the guest said.
func show(err error) string {
	if err == nil {
		return "no error"
	}
	e := lode.AsError(err)
	return fmt.Sprintf("%s: %s %+v", e.Kind, e.Error(), e.Guest)
}

func (s *suite) probe(t *testing.T) *engine.Pool {
	return PoolOf(t, s.e, C(t, "probe"), engine.Config{})
}

func (s *suite) answers(t *testing.T) {
	echo := PoolOf(t, s.e, C(t, "echo"), engine.Config{})
	want(t, echo, "hello", "HELLO")
	want(t, echo, "", "")
	long := strings.Repeat("abc", abi.Inline/3)
	want(t, echo, long, strings.ToUpper(long))
	p := s.probe(t)
	a := &Answer{}
	inv := &engine.Invocation{Body: []byte("respond"), Out: a, Host: &Host{}}
	if err := p.Invoke(context.Background(), inv); err != nil || string(a.Body) != "0 -2" {
		t.Errorf("respond: %q, %v", a.Body, err)
	}
	if pairs, err := engine.DecodeHead(nil, a.Heads); err != nil || fmt.Sprint(pairs) != "[{:status 201} {x-a b}]" {
		t.Errorf("head: %v, %v", pairs, err)
	}
	h := &Host{}
	inv = &engine.Invocation{Body: []byte("print hi"), Out: &Answer{}, Host: h}
	if err := p.Invoke(context.Background(), inv); err != nil {
		t.Error(err)
	}
	for _, line := range []string{"out hi", "err hi", "hi"} {
		if !strings.Contains("\n"+h.Lines()+"\n", "\n"+line+"\n") {
			t.Errorf("log lacks %q: %q", line, h.Lines())
		}
	}
	if u := inv.Usage; u.CPU <= 0 || u.Memory <= 0 || u.BodyIn != 8 || u.BodyOut != 2 || !u.Clean {
		t.Errorf("usage: %+v", u)
	}
}

// clean: nothing that a guest did is there the next time.
func (s *suite) clean(t *testing.T) {
	p := s.probe(t)
	for range 50 {
		want(t, p, "count", "1")
		want(t, p, "keep mine", "mine")
		want(t, p, "kept", "")
		want(t, p, "secret", "ok")
		want(t, p, "write 40", "ok")
		want(t, p, "peek", "0")
	}
	if st := p.Stats(); st.Cold != 1 || st.Warm != 1 {
		t.Errorf("one sandbox should have served all: %+v", st)
	}
	want(t, p, "grow 5000000", "ok") // above the image: cannot be made clean
	want(t, p, "count", "1")
	want(t, p, "peek", "0")
	other := PoolOf(t, s.e, C(t, "probe"), engine.Config{Namespace: "other", Revision: "other/guest@1", Reuse: true})
	mine := PoolOf(t, s.e, C(t, "probe"), engine.Config{Reuse: true})
	want(t, mine, "keep mine", "mine")
	want(t, other, "kept", "")
	want(t, mine, "kept", "mine")
}

// digest: after every reset memory and globals are those of a new sandbox.
func (s *suite) digest(t *testing.T) {
	for name, wasm := range map[string][]byte{"c": C(t, "probe"), "go": Go(t, "probe")} {
		t.Run(name, func(t *testing.T) {
			prog := s.load(t, wasm)
			sb := sandbox(t, prog)
			d, ok := sb.(Digester)
			if !ok {
				t.Skip("the driver does not show its sandboxes' memory")
			}
			clean := d.Digest()
			if fresh := sandbox(t, prog).(Digester).Digest(); fresh != clean {
				t.Fatal("two new sandboxes differ")
			}
			bodies := []string{"count", "write 1", "write 3", "keep x", "write 60", "secret", "global", "write 300", "json", "kept", "write 2", "time", "recurse 500", "goroutines"}
			for i := range 112 {
				body := bodies[i%len(bodies)]
				inv := &engine.Invocation{Body: []byte(body), Out: &Answer{}, Host: &Host{}}
				if err := sb.Invoke(context.Background(), inv); err != nil && lode.KindOf(err) != lode.Crashed {
					t.Fatalf("%s: %v", body, err)
				}
				if d.Digest() == clean && i == 1 && name == "c" {
					t.Fatal("the digest does not see writes")
				}
				if !sb.Reset() {
					sb.Close()
					sb = sandbox(t, prog)
					d = sb.(Digester)
				}
				if d.Digest() != clean {
					t.Fatalf("call %d (%s) left something behind", i, body)
				}
			}
		})
	}
}

func (s *suite) load(t *testing.T, wasm []byte) engine.Program {
	t.Helper()
	prog, err := s.d.Load(context.Background(), wasm, Code(t, s.d, wasm), engine.Config{Revision: "test/digest@1", Namespace: "test", Contract: lode.ContractHandler, Limits: Limits()})
	if err != nil {
		t.Fatal(show(err))
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

func sandbox(t *testing.T, prog engine.Program) engine.Sandbox {
	t.Helper()
	sb, err := prog.Sandbox(context.Background())
	if err != nil {
		t.Fatal(show(err))
	}
	t.Cleanup(func() { sb.Close() })
	return sb
}

// crashes: the error says what the guest said, and the next call is clean.
func (s *suite) crashes(t *testing.T) {
	p, g := s.probe(t), PoolOf(t, s.e, Go(t, "probe"), engine.Config{})
	for _, c := range []struct {
		p             *engine.Pool
		body          string
		kind, message string
		frame         string
	}{
		{p, "trap", "trap", "unreachable", "invoke"},
		{p, "bounds", "trap", "out of bounds", "invoke"},
		{p, "pointer", "trap", "outside the memory", ""},
		{p, "fail", "MyError", "it broke", "b"},
		{p, "exit 0", "exit", "exit code 0", ""},
		{p, "exit 3", "exit", "exit code 3", ""},
		{p, "recurse 100000000", "stack overflow", "exhausted", ""},
		{p, "oom", "trap", "unreachable", ""},
		{p, "nonsense", "error", "returned 9", ""},
		{g, "panic now", "panic", "kaboom now", "main.(*boom).explode"},
		{g, "exit 4", "exit", "exit code 4", ""},
		{g, "oom", "fatal error", "out of memory", ""},
	} {
		_, inv, err := Call(c.p, c.body)
		e := lode.AsError(err)
		if e == nil || e.Kind != lode.Crashed || e.Guest == nil {
			t.Errorf("%s: %s", c.body, show(err))
			continue
		}
		if e.Guest.Type != c.kind || !strings.Contains(e.Guest.Message, c.message) || !strings.Contains(strings.Join(e.Guest.Stack, " "), c.frame) {
			t.Errorf("%s: %+v", c.body, e.Guest)
		}
		if c.body == "exit 3" && inv.ExitCode != 3 {
			t.Errorf("exit code %d", inv.ExitCode)
		}
		if c.p == p {
			want(t, p, "count", "1")
		}
	}
	want(t, g, "count", "4")
}

// init: nothing of the outside is in the image.
func (s *suite) init(t *testing.T) {
	c := engine.Config{Env: map[string]string{"SECRET": "s3cret"}}
	p, q := PoolOf(t, s.e, C(t, "probe"), c), PoolOf(t, s.e, C(t, "probe"), c)
	a, _, err := Call(p, "init")
	b, _, err2 := Call(q, "init")
	if err != nil || err2 != nil || a != b || !strings.HasPrefix(a, "env 0 clock 0 random ") {
		t.Errorf("%q %v, %q %v", a, err, b, err2)
	}
	var now, random, last int64
	for range 2 {
		got, _, err := Call(p, "now")
		if n, _ := fmt.Sscan(got, &now, &random); err != nil || n != 2 || now < 1.7e9 || random == last {
			t.Errorf("%q, %v", got, err)
		}
		last = random
	}
	with := func(content string) []byte { return WithInit(C(t, "probe"), content) }
	want(t, PoolOf(t, s.e, with("bundle"), engine.Config{}), "kept", "bundle")
	want(t, PoolOf(t, s.e, with("another"), engine.Config{}), "kept", "another")
	if k, ok := s.d.(engine.Keyer); ok && k.Key(with("bundle")) != k.Key(with("another")) {
		t.Error("modules that differ in lode.init alone should share code")
	}
	_, err = s.e.Compile(context.Background(), &Source{Wasm: with("fail")}, Limits())
	if e := lode.AsError(err); e == nil || e.Kind != lode.Invalid || e.Guest == nil || e.Guest.Type != "InitError" {
		t.Errorf("a failing lode_init: %s", show(err))
	}
	info, err := s.e.Compile(context.Background(), &Source{Wasm: C(t, "probe"), Cache: true}, Limits())
	if err != nil || info.Contract != lode.ContractHandler || info.Description == nil || info.Description.SDK != "c 1" || len(info.Imports) == 0 || info.CodeBytes == 0 {
		t.Errorf("%+v, %v", info, err)
	}
	for name, wasm := range map[string][]byte{"empty": nil, "text": []byte("hello"), "component": []byte("\x00asm\x0d\x00\x01\x00"), "cut": C(t, "probe")[:5000], "nothing": []byte("\x00asm\x01\x00\x00\x00")} {
		if _, err := s.e.Compile(context.Background(), &Source{Wasm: wasm}, Limits()); lode.KindOf(err) != lode.Invalid {
			t.Errorf("%s: %s", name, show(err))
		}
	}
}

func (s *suite) files(t *testing.T) {
	p := s.probe(t)
	for range 2 { // nothing is left in /tmp
		want(t, p, "files", "w5 r4 ello ro-1 1 size5 mv0 rm0 total983040 full1")
	}
}

func (s *suite) commands(t *testing.T) {
	command := func(ok []int, args ...string) *engine.Pool {
		return PoolOf(t, s.e, C(t, "command"), engine.Config{Contract: lode.ContractCommand, Args: args, OKExit: ok, Env: map[string]string{"MINE": "yes"}, Revision: "test/tool@7"})
	}
	cat := command(nil, "cat")
	for range 3 {
		want(t, cat, "some text", "some text")
	}
	if _, inv, _ := Call(cat, "x"); inv.Usage.Cold {
		t.Error("a command that returns should leave its sandbox warm")
	}
	head := engine.EncodeHead(nil, []lode.Pair{{Key: ":method", Value: "PUT"}, {Key: ":path", Value: "/a/b?q=1"}, {Key: "x-a", Value: "z"}})
	env := command(nil, "env")
	for range 2 {
		a := &Answer{}
		if err := env.Invoke(context.Background(), &engine.Invocation{Head: head, Out: a}); err != nil || string(a.Body) != "tool PUT /a/b q=1 z yes 1" {
			t.Errorf("%q, %v", a.Body, show(err))
		}
	}
	got, inv, err := Call(command(nil, "exit", "1"), "")
	if e := lode.AsError(err); e == nil || e.Kind != lode.Crashed || e.Guest.Type != "exit" || inv.ExitCode != 1 || got != "" || string(inv.Reply.Body) != "said 1" {
		t.Errorf("%q %s %d %q", got, show(err), inv.ExitCode, inv.Reply.Body)
	}
	want(t, command([]int{0, 1}, "exit", "1"), "", "said 1")
	if _, _, err := Call(command(nil, "abort"), ""); lode.KindOf(err) != lode.Crashed || !strings.Contains(lode.AsError(err).Guest.Message, "about to abort") {
		t.Error(show(err))
	}
	if got, _, err := Call(command(nil, "big"), ""); err != nil || len(got) != 2_000_000 || !strings.HasSuffix(got, "000199999\n") {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	shard := newShard(t, 100_000)
	a := &Answer{}
	err = command(nil, "shard").Invoke(context.Background(), &engine.Invocation{Out: a, Windows: shard})
	if want := fmt.Sprint(len(shard.b), " ", shard.sum()); err != nil || string(a.Body) != want {
		t.Errorf("%q, %v; want %q", a.Body, show(err), want)
	}
}

func (s *suite) goGuests(t *testing.T) {
	g := PoolOf(t, s.e, Go(t, "probe"), engine.Config{})
	for range 20 {
		want(t, g, "count", "4") // three in the warm-up
		want(t, g, "json", `{"a":1,"b":[1,2,3],"c":{"d":"e"}} 1`)
		want(t, g, "keep", "1")
		want(t, g, "goroutines", "45")
	}
	want(t, g, "sleep 3ms", "slept")
	want(t, g, "file", "y<nil> 1")
	want(t, g, "garbage 20000", "ok")
}

// reuse: sandboxes are kept as they are, until they are nearly full.
func (s *suite) reuse(t *testing.T) {
	g := PoolOf(t, s.e, Go(t, "probe"), engine.Config{Reuse: true})
	want(t, g, "keep", "1")
	want(t, g, "keep", "2")
	for range 1500 { // 64 KiB each
		if _, _, err := Call(g, "keep"); err != nil {
			t.Fatal(show(err))
		}
	}
	if st := g.Stats(); st.Retired == 0 {
		t.Errorf("a sandbox over its limit was kept: %+v", st)
	}
}

// shard is a file with bytes to map.
type shard struct {
	f *os.File
	b []byte
}

func newShard(t *testing.T, n int) *shard {
	t.Helper()
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	path := filepath.Join(t.TempDir(), "shard")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &shard{f, b}
}

func (s *shard) sum() (sum int64) {
	for _, b := range s.b {
		sum += int64(b)
	}
	return sum
}

// File implements engine.Windows.
func (s *shard) File() (uintptr, int64) { return s.f.Fd(), int64(len(s.b)) }

// ReadAt implements engine.Windows.
func (s *shard) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

// Path is where the file is: workers open it themselves.
func (s *shard) Path() string { return s.f.Name() }

var _ engine.Windows = (*shard)(nil)

// windows: the shard is seen, the file stays as it is, and no byte of it stays
// in the sandbox.
func (s *suite) windows(t *testing.T) {
	for _, size := range []int{9<<20 + 12345, 4 << 20, 100} {
		sh := newShard(t, size)
		before := sha256.Sum256(sh.b)
		a := &Answer{}
		p := s.probe(t)
		err := p.Invoke(context.Background(), &engine.Invocation{Body: []byte("window"), Out: a, Windows: sh, Deadline: time.Now().Add(10 * time.Second)})
		if want := fmt.Sprintf("%d %d", size, sh.sum()); err != nil || string(a.Body) != want {
			t.Errorf("%q, %s; want %q", a.Body, show(err), want)
		}
		if after, _ := os.ReadFile(sh.f.Name()); sha256.Sum256(after) != before {
			t.Error("the guest has written into the shard")
		}
		if st := p.Stats(); st.Warm != 0 {
			t.Errorf("a job's sandbox was kept: %+v", st)
		}
		want(t, p, "windowpeek", "0")
	}
	s.remap(t)
}

// remap resets a sandbox that had windows, as no pool does.
func (s *suite) remap(t *testing.T) {
	sb := sandbox(t, s.load(t, C(t, "probe")))
	d, ok := sb.(Digester)
	if !ok {
		return
	}
	clean := d.Digest()
	// Two windows of one granule: over the image, and above what it holds.
	sh := newShard(t, 1<<20)
	inv := &engine.Invocation{Body: []byte("imagewindow"), Out: &Answer{}, Windows: sh}
	if err := sb.Invoke(context.Background(), inv); err != nil {
		t.Fatal(show(err))
	}
	if string(inv.Reply.Body) != "ok" || d.Digest() == clean {
		t.Fatalf("%q: the window is not there", inv.Reply.Body)
	}
	if !sb.Reset() {
		t.Fatal("a window over the image cannot be reset")
	}
	if d.Digest() != clean {
		t.Error("the shard is still there after a reset")
	}
}
