// Package abitest is a small host for the guest ABI, on wazero, to test the
// SDKs against: it runs a module's exports in the order of the ABI and plays
// the operations from a script. It promises to follow the page of lode/sdk/abi
// and nothing else: no limits, no clean sandboxes, no speed.
//
// Only tests import it. The real host is lode/engine.
package abitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"lode/sdk/abi"
)

// Message is a decoded message; a repeated key keeps its last value.
type Message struct {
	Head map[string]string
	Body []byte
}

// Encode is m as the ABI has it.
func (m Message) Encode() []byte {
	b := abi.AppendHead(nil, len(m.Head))
	for k, v := range m.Head {
		b = abi.AppendPair(b, k, v)
	}
	return append(b, m.Body...)
}

// Decode reads a message.
func Decode(b []byte) (m Message, err error) {
	m.Head = map[string]string{}
	m.Body, err = abi.Decode(b, func(k, v []byte) { m.Head[string(k)] = string(v) })
	m.Body = bytes.Clone(m.Body)
	return m, err
}

// Operations plays the host's side of one operation. It runs on a goroutine
// of its own and may sleep; ctx ends when the guest cancels.
type Operations func(ctx context.Context, op abi.Op, m Message) (abi.Status, Message)

// Call is one invocation.
type Call struct {
	Head   map[string]string
	Body   []byte
	Chunks [][]byte // a streamed body: each chunk comes after one body_read
	Shard  []byte
	Credit int // bytes that write takes before it wants a body_write; 0: all
	Ops    Operations
	// AtOnce tells operations that are complete when they are submitted, as
	// those of an agent's state are; nil: none is. They run where the guest does.
	AtOnce func(op abi.Op) bool
}

// Result is what came of it.
type Result struct {
	Code   int32
	Status string // :status, "" if respond was not called
	Head   map[string]string
	Body   []byte
	Fail   *Failure
	Logs   []Line
	Writes int // calls of respond and write with bytes
}

// Failure is what the guest gave to fail.
type Failure struct {
	Type    string   `json:"type"`
	Message string   `json:"message"`
	Stack   []string `json:"stack"`
}

// Line is one line of log.
type Line struct {
	Level int32
	Text  string
}

// Guest is one instance of a module, past its initialisation.
type Guest struct {
	Describe []byte // the JSON of lode_describe
	Stderr   bytes.Buffer

	runtime wazero.Runtime
	module  api.Module
	call    *state
}

// Load compiles and initialises a module: _initialize, lode_init, lode_warm,
// lode_describe. A failed export is an error with the guest's own words.
func Load(ctx context.Context, wasm []byte) (*Guest, error) {
	g := &Guest{runtime: wazero.NewRuntimeWithConfig(ctx, config().WithCustomSections(true).WithCompilationCache(cache()))}
	if err := g.load(ctx, wasm); err != nil {
		g.Close(ctx)
		return nil, err
	}
	return g, nil
}

// cache lets the tests of one process compile a module once.
var cache = sync.OnceValue(wazero.NewCompilationCache)

func (g *Guest) load(ctx context.Context, wasm []byte) error {
	c, err := g.runtime.CompileModule(ctx, wasm)
	if err != nil {
		return err
	}
	if err := g.imports(ctx); err != nil {
		return err
	}
	config := wazero.NewModuleConfig().WithStartFunctions().WithStdout(&g.Stderr).WithStderr(&g.Stderr).WithSysWalltime().WithSysNanotime()
	if g.module, err = g.runtime.InstantiateModule(ctx, c, config); err != nil {
		return err
	}
	var section []byte
	for _, s := range c.CustomSections() {
		if s.Name() == "lode.init" {
			section = s.Data()
		}
	}
	for _, name := range []string{"_initialize", "lode_init", "lode_warm", "lode_describe"} {
		call := &Call{}
		if name == "lode_init" {
			call.Body = section
		}
		r, err := g.run(ctx, name, call)
		if err != nil {
			return err
		}
		if r.Code != 0 {
			return fmt.Errorf("%s: %v %s", name, r.Fail, g.Stderr.String())
		}
		g.Describe = r.Body
	}
	return nil
}

// Invoke runs lode_invoke. An error is a trap.
func (g *Guest) Invoke(ctx context.Context, c Call) (*Result, error) {
	return g.run(ctx, "lode_invoke", &c)
}

// Memory is the size of the guest's memory in bytes.
func (g *Guest) Memory() int { return int(g.module.Memory().Size()) }

// Close frees everything.
func (g *Guest) Close(ctx context.Context) error { return g.runtime.Close(ctx) }

// run calls one export; a missing one is a success.
func (g *Guest) run(ctx context.Context, name string, c *Call) (*Result, error) {
	f := g.module.ExportedFunction(name)
	if f == nil {
		if name == "lode_invoke" || name == "lode_describe" {
			return nil, fmt.Errorf("the module does not export %s", name)
		}
		return &Result{}, nil
	}
	s := &state{call: c, body: c.Body, res: &Result{Head: map[string]string{}}, done: map[uint32]completed{}, cancels: map[uint32]context.CancelFunc{},
		arrived: make(chan struct{}, 1), credit: c.Credit}
	g.call = s
	out, err := f.Call(ctx)
	s.end()
	if err != nil {
		return s.res, fmt.Errorf("%s: %w %v\n%s", name, err, s.res.Fail, g.Stderr.String())
	}
	if len(out) > 0 {
		s.res.Code = int32(out[0])
	}
	return s.res, nil
}

// completed is an operation whose result waits for take.
type completed struct {
	abi.Completion
	result []byte
}

// state is the host's side of one call of an export.
type state struct {
	call    *Call
	body    []byte
	chunk   int // chunks that were handed over
	credit  int
	begun   bool
	res     *Result
	wg      sync.WaitGroup
	arrived chan struct{}

	mu      sync.Mutex
	last    uint32
	open    int // submitted and not yet reported
	ready   []abi.Completion
	done    map[uint32]completed
	cancels map[uint32]context.CancelFunc
}

// end waits for the operations that the guest left behind.
func (s *state) end() {
	s.mu.Lock()
	for _, cancel := range s.cancels {
		cancel()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *state) submit(ctx context.Context, op abi.Op, raw []byte) int32 {
	m, err := Decode(raw)
	if err != nil {
		return abi.Malformed
	}
	if op < 1 || op > abi.OpSocket || op == 7 {
		return abi.UnknownOp
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open >= abi.MaxOps {
		return abi.TooMany
	}
	s.last++
	s.open++
	id := s.last
	ctx, cancel := context.WithCancel(ctx)
	s.cancels[id] = cancel
	if own, ok := s.own(ctx, op); ok {
		s.finish(id, own, Message{})
		return int32(id)
	}
	if s.call.AtOnce != nil && s.call.AtOnce(op) {
		status, out := s.call.Ops(ctx, op, m)
		s.finish(id, status, out)
		return int32(id)
	}
	s.wg.Go(func() {
		status, out := s.play(ctx, op, m)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.finish(id, status, out)
	})
	return int32(id)
}

// own are the operations that concern the body; s.mu is held.
func (s *state) own(_ context.Context, op abi.Op) (abi.Status, bool) {
	switch op {
	case abi.OpBodyRead:
		if s.chunk < len(s.call.Chunks) {
			s.body = s.call.Chunks[s.chunk]
		}
		s.chunk++
		return 0, true
	case abi.OpBodyWrite:
		s.credit = s.call.Credit
		return 0, true
	}
	return 0, false
}

// play runs the script, after sleep, which every host has.
func (s *state) play(ctx context.Context, op abi.Op, m Message) (abi.Status, Message) {
	if op == abi.OpSleep {
		var ns int64
		fmt.Sscan(m.Head[":ns"], &ns)
		select {
		case <-time.After(time.Duration(ns)):
			return 0, Message{}
		case <-ctx.Done():
			return abi.StatusOf("cancelled"), Message{}
		}
	}
	if s.call.Ops == nil {
		return abi.StatusOf("unavailable"), Message{Head: map[string]string{":error": "unavailable", ":detail": "no script"}}
	}
	return s.call.Ops(ctx, op, m)
}

// finish reports a completion; s.mu is held.
func (s *state) finish(id uint32, status abi.Status, out Message) {
	raw := out.Encode()
	c := abi.Completion{ID: id, Status: status, Length: uint32(len(raw))}
	s.done[id] = completed{c, raw}
	s.ready = append(s.ready, c)
	s.cancels[id]()
	select {
	case s.arrived <- struct{}{}:
	default:
	}
}

// next takes up to max completions without waiting.
func (s *state) next(max int) []abi.Completion {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(max, len(s.ready))
	out := s.ready[:n:n]
	s.ready = s.ready[n:]
	s.open -= n
	return out
}

// await waits until a completion is there; false when the time is over, or
// when nothing is under way.
func (s *state) await(timeout time.Duration) bool {
	var timer <-chan time.Time
	if timeout >= 0 {
		timer = time.After(timeout)
	}
	for {
		s.mu.Lock()
		n, open := len(s.ready), s.open
		s.mu.Unlock()
		if n > 0 {
			return true
		}
		if open == 0 && timeout < 0 {
			return false
		}
		select {
		case <-s.arrived:
		case <-timer:
			return false
		}
	}
}

func (s *state) respond(raw []byte) int32 {
	m, err := Decode(raw)
	if err != nil {
		return abi.Malformed
	}
	if s.begun {
		return abi.Begun
	}
	s.begun = true
	s.res.Status, s.res.Head = m.Head[":status"], m.Head
	if len(m.Body) > 0 {
		s.res.Writes++
		s.res.Body = append(s.res.Body, m.Body...)
	}
	return 0
}

func (s *state) write(p []byte) int32 {
	s.begun = true
	if s.call.Credit > 0 {
		p = p[:min(len(p), s.credit)]
		s.credit -= len(p)
	}
	s.res.Writes++
	s.res.Body = append(s.res.Body, p...)
	return int32(len(p))
}

func (s *state) read(p []byte) int32 {
	n := copy(p, s.body)
	s.body = s.body[n:]
	if n == 0 && s.chunk <= len(s.call.Chunks) && len(s.call.Chunks) > 0 {
		return abi.Again
	}
	return int32(n)
}

// setFailure keeps what the guest said.
func (s *state) setFailure(b []byte) {
	var f Failure
	if err := json.Unmarshal(b, &f); err != nil {
		f = Failure{Type: "not JSON", Message: strings.ToValidUTF8(string(b), "?")}
	}
	s.res.Fail = &f
}
