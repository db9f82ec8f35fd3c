package wasm

import (
	"errors"
	"runtime"
	"strconv"
	"strings"

	"github.com/tetratelabs/wazero/sys"

	"lode"
)

// crashed is the error of a call that did not return, nil for a command that
// exited well. Operations and files are dropped at the end of the invocation.
func (c *call) crashed(err error) error {
	if s, ok := errors.AsType[stop](err); ok {
		return c.stopped(s)
	}
	if exit, ok := errors.AsType[*sys.ExitError](err); ok {
		if e := c.exited(exit.ExitCode()); e != nil {
			return e
		}
		return nil
	}
	if bug, ok := errors.AsType[runtime.Error](err); ok {
		return lode.Errorf(lode.Internal, "a host function failed: %w", bug)
	}
	message, stack := trap(err.Error())
	g := c.guestError("trap", message)
	if len(g.Stack) == 0 {
		g.Stack = stack
	}
	e := lode.Errorf(lode.Crashed, "the function crashed: %s", g.Message)
	e.Guest, e.Err = g, err
	return e
}

// failed is the error of an export that returned code.
func (c *call) failed(code int32) error {
	g := c.guestError("error", "the function returned "+strconv.Itoa(int(code)))
	e := lode.Errorf(lode.Crashed, "the function failed: %s", g.Message)
	e.Guest = g
	return e
}

// guestError is what the guest said itself, else what its standard error
// shows, else kind and message.
func (c *call) guestError(kind, message string) *lode.GuestError {
	if c.failure != nil {
		return c.failure
	}
	tail := string(c.wasi.err.tail[max(0, len(c.wasi.err.tail)-tailMax):])
	if g := goPanic(tail); g != nil {
		return g
	}
	if last := lastLine(tail); last != "" {
		message += ": " + last
	}
	return &lode.GuestError{Type: kind, Message: message}
}

// lastLine is the last line of s that holds something.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
}

// goPanic reads what Go's runtime prints when a program dies:
//
//	panic: message            or  fatal error: message
//
//	goroutine 1 [running]:
//	main.f(...)
//		/file.go:7 +0x2
func goPanic(tail string) *lode.GuestError {
	for _, kind := range []string{"panic", "fatal error"} {
		mark := kind + ": "
		i := strings.LastIndex("\n"+tail, "\n"+mark)
		if i < 0 {
			continue
		}
		rest := tail[i+len(mark):]
		message, rest, _ := strings.Cut(rest, "\n")
		return &lode.GuestError{Type: kind, Message: strings.TrimSuffix(message, " [recovered]"), Stack: goFrames(rest)}
	}
	return nil
}

// goFrames are the functions of the first goroutine in a trace.
func goFrames(s string) (frames []string) {
	_, s, ok := strings.Cut(s, "goroutine ")
	if !ok {
		return nil
	}
	_, s, _ = strings.Cut(s, "\n")
	for line := range strings.SplitSeq(s, "\n") {
		if line == "" || len(frames) >= 30 {
			break
		}
		if line[0] == '\t' {
			continue
		}
		if i := strings.LastIndexByte(line, '('); i > 0 && !strings.HasPrefix(line, "created by") {
			line = line[:i]
		}
		frames = append(frames, line)
	}
	return frames
}

// trap splits the engine's error: "wasm error: what\nwasm stack
// trace:\n\t.name(i32) i32\n\t...".
func trap(s string) (message string, stack []string) {
	message, trace, _ := strings.Cut(s, "\nwasm stack trace:\n")
	message, _, _ = strings.Cut(message, "\n")
	message = strings.TrimSuffix(strings.TrimPrefix(message, "wasm error: "), " (recovered by wazero)")
	for line := range strings.SplitSeq(trace, "\n") {
		if line == "" {
			break // what follows is the host's own
		}
		if name := frameName(strings.TrimPrefix(line, "\t")); name != "" {
			stack = append(stack, name)
		}
	}
	return message, stack
}

// frameName takes the module and the signature off one line of a trace: names
// may hold parentheses themselves.
func frameName(line string) string {
	line = strings.TrimPrefix(line, ".")
	for i := 0; i < len(line); i++ {
		if line[i] != '(' {
			continue
		}
		types, _, ok := strings.Cut(line[i+1:], ")")
		if ok && isTypes(types) {
			return line[:i]
		}
	}
	return line
}

func isTypes(s string) bool {
	if s == "" {
		return true
	}
	for t := range strings.SplitSeq(s, ",") {
		switch t {
		case "i32", "i64", "f32", "f64", "v128", "externref", "funcref":
		default:
			return false
		}
	}
	return true
}
