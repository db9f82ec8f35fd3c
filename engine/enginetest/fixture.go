package enginetest

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/engine"
	"lode/sdk/abi"
)

// Answer keeps what a guest answers.
type Answer struct {
	Heads  []byte
	Body   []byte
	Writes int
}

// Head implements engine.Answer.
func (a *Answer) Head(head []byte) error {
	a.Heads = append([]byte(nil), head...)
	return nil
}

// Write implements engine.Answer.
func (a *Answer) Write(p []byte) (int, error) {
	a.Body = append(a.Body, p...)
	a.Writes++
	return len(p), nil
}

var _ engine.Answer = (*Answer)(nil)

// Host is a Host whose operations are given as a function; nil completes them
// with Unavailable. Lines are what was logged.
type Host struct {
	Do func(ctx context.Context, op abi.Op, req lode.Message, done func(lode.Message, error))

	mu    sync.Mutex
	lines []string
}

// Submit implements engine.Host.
func (h *Host) Submit(ctx context.Context, op abi.Op, req lode.Message, done func(lode.Message, error)) {
	if h.Do == nil {
		done(lode.Message{}, lode.Errorf(lode.Unavailable, "no operations in this test"))
		return
	}
	h.Do(ctx, op, req, done)
}

// Log implements engine.Host.
func (h *Host) Log(_ int, line []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, string(line))
}

// Lines are the lines logged, joined.
func (h *Host) Lines() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.lines, "\n")
}

var _ engine.Host = (*Host)(nil)

// Limits are those of the tests: small, so that what is unbounded shows.
func Limits() lode.Limits {
	return lode.Limits{Memory: 64 << 20, Start: 20 * time.Second, Tmp: 1 << 20}
}

// Pool makes an engine over d and a pool of wasm. Both end with the test.
func Pool(t testing.TB, d engine.Driver, wasm []byte, c engine.Config) *engine.Pool {
	t.Helper()
	e := engine.New(engine.EngineConfig{Driver: d, Key: Key()})
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return PoolOf(t, e, wasm, c)
}

// PoolOf makes a pool of wasm in e, with defaults in c.
func PoolOf(t testing.TB, e *engine.Engine, wasm []byte, c engine.Config) *engine.Pool {
	t.Helper()
	if c.Revision == "" {
		c.Revision = "test/guest@1"
	}
	if c.Namespace == "" {
		c.Namespace = "test"
	}
	if c.Contract == "" {
		c.Contract = lode.ContractHandler
	}
	if c.Limits == (lode.Limits{}) {
		c.Limits = Limits()
	}
	p, err := e.Pool(c, &Source{Wasm: wasm, Cache: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Code is wasm compiled by d, without an engine around it.
func Code(t testing.TB, d engine.Driver, wasm []byte) []byte {
	t.Helper()
	src, key := &Source{Wasm: wasm, Cache: true}, "raw-"+d.Fingerprint()
	if k, ok := d.(engine.Keyer); ok {
		// What an engine has kept is 32 bytes of proof before the code.
		key = "raw-" + k.Key(wasm)
		if b, ok, _ := src.Code(context.Background(), k.Key(wasm)); ok && len(b) > 32 {
			return b[32:]
		}
	}
	if b, ok, _ := src.Code(context.Background(), key); ok {
		return b
	}
	b, _, err := d.Compile(context.Background(), wasm, Limits())
	if err != nil {
		t.Fatal(show(err))
	}
	src.Keep(context.Background(), key, b)
	return b
}

// Call invokes with body and returns the answer's body and the invocation.
func Call(p *engine.Pool, body string) (string, *engine.Invocation, error) {
	a := &Answer{}
	inv := &engine.Invocation{ID: "test", Head: abi.AppendHead(nil, 0), Body: []byte(body), Out: a, Host: &Host{}, Deadline: time.Now().Add(20 * time.Second)}
	err := p.Invoke(context.Background(), inv)
	return string(a.Body), inv, err
}
