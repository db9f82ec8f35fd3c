package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math"
	"net/http"
	"time"

	"github.com/zeebo/blake3"

	"lode"
	"lode/cmd/build"
	"lode/engine"
	"lode/engine/wasm"
)

// box is one sandbox in this process, for what cannot be seen from outside.
type box struct {
	driver *wasm.Driver
	prog   engine.Program
	sb     engine.Sandbox
}

func openBox(ctx context.Context, module []byte) (*box, error) {
	d, err := wasm.New(wasm.Config{})
	if err != nil {
		return nil, err
	}
	b := &box{driver: d}
	code, info, err := d.Compile(ctx, module, function(&build.Artifact{}).Limits)
	if err == nil {
		b.prog, err = d.Load(ctx, module, code, engine.Config{Revision: "bench/box@1", Namespace: "bench", Contract: info.Contract, Limits: function(&build.Artifact{}).Limits})
	}
	if err == nil {
		b.sb, err = b.prog.Sandbox(ctx)
	}
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *box) close() {
	if b.sb != nil {
		b.sb.Close()
	}
	if b.prog != nil {
		b.prog.Close()
	}
	b.driver.Close()
}

// resetTime is the median time of a reset over n invocations, in microseconds.
// A sandbox that could not be made clean is replaced; its reset is not counted.
func (b *box) resetTime(ctx context.Context, body []byte, n int) (float64, error) {
	head := engine.EncodeHead(nil, []lode.Pair{{Key: ":kind", Value: "http"}, {Key: ":method", Value: "POST"}, {Key: ":path", Value: "/"}, {Key: ":handler", Value: ""},
		{Key: ":deadline", Value: "99999999999999"}})
	inv := &engine.Invocation{}
	var took []float64
	for range n {
		*inv = engine.Invocation{ID: "bench", Head: head, Body: body, Out: drop{}, Host: noHost{}}
		if err := b.sb.Invoke(ctx, inv); err != nil {
			return 0, err
		}
		start := time.Now()
		clean := b.sb.Reset()
		d := time.Since(start)
		if clean {
			took = append(took, float64(d.Nanoseconds())/1e3)
			continue
		}
		b.sb.Close()
		var err error
		if b.sb, err = b.prog.Sandbox(ctx); err != nil {
			return 0, err
		}
	}
	if len(took) == 0 {
		return math.NaN(), nil
	}
	return median(took), nil
}

// drop takes an answer and forgets it.
type drop struct{}

func (drop) Head([]byte) error           { return nil }
func (drop) Write(p []byte) (int, error) { return len(p), nil }

// noHost performs no operation.
type noHost struct{}

func (noHost) Submit(_ context.Context, op engine.Op, _ lode.Message, done func(lode.Message, error)) {
	done(lode.Message{}, lode.Errorf(lode.Unavailable, "no operation %d here", op))
}
func (noHost) Log(int, []byte) {}

var (
	_ engine.Answer = drop{}
	_ engine.Host   = noHost{}
)

// post sends one request and reads the answer.
func (s *site) post(ctx context.Context, path string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, "POST", "http://"+s.addr+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// straight makes a handler whose loop has a body of 1 MB without a branch:
// between two looks at the clock that only counted loops, milliseconds would
// pass.
//
//	(module
//	  (memory (export "memory") 1)
//	  (func (export "lode_invoke") (result i32) (local i32)
//	    loop
//	      local.get 0  i32.const 7  i32.mul  local.set 0     -- 128 Ki times
//	      br 0
//	    end
//	    unreachable))
func (r *runner) straight() (*build.Artifact, error) {
	step := []byte{0x20, 0, 0x41, 7, 0x6c, 0x21, 0, 0x01} // and a nop: 8 bytes
	loop := append([]byte{0x03, 0x40}, bytes.Repeat(step, 128<<10)...)
	loop = append(loop, 0x0c, 0, 0x0b, 0x00, 0x0b)
	body := append([]byte{1, 1, 0x7f}, loop...)
	m := []byte("\x00asm\x01\x00\x00\x00")
	m = section(m, 1, []byte{1, 0x60, 0, 1, 0x7f})
	m = section(m, 3, []byte{1, 0})
	m = section(m, 5, []byte{1, 0, 1})
	exports := []byte{2}
	exports = append(append(exports, 6), "memory\x02\x00"...)
	exports = append(append(exports, 11), "lode_invoke\x00\x00"...)
	m = section(m, 7, exports)
	code := []byte{1}
	code = append(binary.AppendUvarint(code, uint64(len(body))), body...)
	m = section(m, 10, code)
	return &build.Artifact{Name: "straight", Wasm: m, Digest: blake3.Sum256(m), Language: "wasm", Contract: lode.ContractHandler}, nil
}

func section(m []byte, id byte, content []byte) []byte {
	m = append(m, id)
	m = binary.AppendUvarint(m, uint64(len(content)))
	return append(m, content...)
}
