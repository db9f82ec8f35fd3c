package lode

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"lode/sdk/abi"
)

//go:wasmimport lode_v1 request
func hostRequest(p unsafe.Pointer, n uint32) int32

//go:wasmimport lode_v1 read
func hostRead(p unsafe.Pointer, n uint32) int32

//go:wasmimport lode_v1 respond
func hostRespond(p unsafe.Pointer, n uint32) int32

//go:wasmimport lode_v1 write
func hostWrite(p unsafe.Pointer, n uint32) int32

//go:wasmimport lode_v1 submit
func hostSubmit(op uint32, p unsafe.Pointer, n uint32) int32

//go:wasmimport lode_v1 wait
func hostWait(timeout int64, out unsafe.Pointer) int32

//go:wasmimport lode_v1 take
func hostTake(id int32, p unsafe.Pointer, n uint32) int32

//go:wasmimport lode_v1 cancel
func hostCancel(id int32) int32

//go:wasmimport lode_v1 log
func hostLog(level int32, p unsafe.Pointer, n uint32)

//go:wasmimport lode_v1 fail
func hostFail(p unsafe.Pointer, n uint32)

//go:wasmimport lode_v1 window
func hostWindow(offset int64, p unsafe.Pointer, n uint32) int64

func start(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

// main_main is the program's main, which a reactor does not run by itself.
//
//go:linkname main_main main.main
func main_main()

// begin has nothing to do: registrations come from lode_init.
func begin() {}

//go:wasmexport lode_init
func lodeInit() (rc int32) {
	defer failOnPanic(&rc)
	main_main()
	return 0
}

//go:wasmexport lode_describe
func lodeDescribe() (rc int32) {
	defer failOnPanic(&rc)
	b, err := exports.describe()
	if err != nil {
		return fail("lode.Registration", err.Error(), nil)
	}
	for len(b) > 0 {
		n := hostWrite(start(b), uint32(len(b)))
		if n <= 0 {
			return 1
		}
		b = b[n:]
	}
	return 0
}

//go:wasmexport lode_invoke
func lodeInvoke() (rc int32) {
	defer failOnPanic(&rc)
	collect()
	raw := make([]byte, 1024)
	n := int(hostRequest(start(raw), uint32(len(raw))))
	if n > len(raw) {
		raw = make([]byte, n)
		n = int(hostRequest(start(raw), uint32(len(raw))))
	}
	m, err := parse(raw[:n])
	if err != nil {
		return fail("lode.Protocol", err.Error(), nil)
	}
	v := &invocation{request: m, port: hostPort{}}
	defer v.end()
	h, err := exports.of(&v.request)
	if err != nil {
		return fail("lode.NoHandler", err.Error(), nil)
	}
	if err := h(v); err != nil {
		return fail(fmt.Sprintf("%T", err), err.Error(), nil)
	}
	return 0
}

// of returns what answers a request with that head.
func (r *registry) of(m *message) (handler, error) {
	kind := m.get(":kind")
	if kind == "agent" {
		return r.kindOf(m.get(":class"))
	}
	return r.find(kind, m.get(":handler"))
}

// fail tells the host what went wrong, and is the return value of a failed
// export.
func fail(kind, text string, stack []string) int32 {
	b, _ := json.Marshal(struct {
		Type    string   `json:"type"`
		Message string   `json:"message"`
		Stack   []string `json:"stack,omitempty"`
	}{kind, text, stack})
	hostFail(start(b), uint32(len(b)))
	return 1
}

// failOnPanic is deferred by the exports.
func failOnPanic(rc *int32) {
	if p := recover(); p != nil {
		kind := fmt.Sprintf("%T", p)
		if kind == "string" {
			kind = "panic"
		}
		*rc = fail(kind, fmt.Sprint(p), frames())
	}
}

// frames is the stack of the panic, innermost first, without the runtime's
// and this package's own frames.
func frames() []string {
	var pcs [64]uintptr
	all := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	var out []string
	for {
		f, more := all.Next()
		own := strings.HasPrefix(f.Function, "runtime.") || strings.HasPrefix(f.Function, "lode/sdk/go.") || strings.HasPrefix(f.Function, "reflect.")
		if f.Function != "" && !own {
			out = append(out, fmt.Sprintf("%s (%s:%d)", f.Function, f.File, f.Line))
		}
		if !more {
			return out
		}
	}
}

// hostPort speaks the guest ABI.
type hostPort struct{}

var _ port = hostPort{}

func (hostPort) read(ctx context.Context, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch n := hostRead(start(p), uint32(len(p))); {
		case n > 0:
			return int(n), nil
		case n == 0:
			return 0, io.EOF
		case n != abi.Again:
			return 0, &Error{Kind: Internal, Detail: fmt.Sprintf("read answered %d", n)}
		}
		if _, err := operate(ctx, abi.OpBodyRead, message{}); err != nil {
			return 0, err
		}
	}
}

func (h hostPort) respond(ctx context.Context, status int, head []pair, body []byte) error {
	n := len(head)
	if status != 200 {
		n++
	}
	var now []byte
	if len(body) <= abi.Inline { // a longer one goes by credit
		now, body = body, nil
	}
	b := abi.AppendHead(make([]byte, 0, 256+len(now)), n)
	for _, p := range head {
		b = abi.AppendPair(b, p.key, p.value)
	}
	if status != 200 {
		b = abi.AppendPair(b, ":status", strconv.Itoa(status))
	}
	b = append(b, now...)
	switch rc := hostRespond(start(b), uint32(len(b))); rc {
	case abi.Begun:
		return &Error{Kind: Conflict, Detail: "the answer has begun"}
	case abi.Malformed:
		return &Error{Kind: Invalid, Detail: "the answer's head is not valid"}
	}
	if len(body) == 0 {
		return nil
	}
	return h.write(ctx, body)
}

func (hostPort) write(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		n := hostWrite(start(p), uint32(len(p)))
		if n < 0 {
			return &Error{Kind: Cancelled, Detail: "nobody reads the answer any more"}
		}
		p = p[n:]
		if len(p) == 0 {
			return nil
		}
		if _, err := operate(ctx, abi.OpBodyWrite, message{}); err != nil {
			return err
		}
	}
	return nil
}

func (hostPort) flush(ctx context.Context) error {
	_, err := operate(ctx, abi.OpBodyWrite, message{})
	return err
}

func (hostPort) window(offset int64, p []byte) (int64, error) {
	n := hostWindow(offset, start(p), uint32(len(p)))
	if n < 0 {
		return 0, &Error{Kind: Internal, Detail: fmt.Sprintf("window answered %d", n)}
	}
	return n, nil
}
