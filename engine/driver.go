package engine

import (
	"context"
	"io"
	"time"

	"lode"
	"lode/sdk/abi"
)

// Driver runs artifacts of one form. engine/wasm is one; engine/enginetest
// holds what all of them must pass. A Driver is safe for concurrent use.
type Driver interface {
	// Compile checks module and makes native code of it. It is called once for
	// each artifact, at deploy; code is what Load needs later, on any node
	// whose Fingerprint is the same. The error is of kind Invalid, and says
	// what in the module is wrong.
	Compile(ctx context.Context, module []byte, l lode.Limits) (code []byte, d *Info, err error)
	// Load makes compiled code ready. It may be called many times for one code;
	// equal code is shared.
	Load(ctx context.Context, module, code []byte, c Config) (Program, error)
	// Fingerprint names driver, version and CPU features: code is valid only
	// where it is equal.
	Fingerprint() string
	Close() error
}

// Info is what Compile learns from a module.
type Info struct {
	Contract    lode.Contract
	Imports     []string // "lode_v1.submit", "wasi_snapshot_preview1.fd_read"
	SIMD        bool
	Description *lode.Description // nil for commands
	CodeBytes   int64             // native code, as counted against the budget
}

// Config is one revision as the engine sees it.
type Config struct {
	Revision  string         // namespace/name@number: for logs and metrics
	Namespace lode.Namespace // sandboxes of two namespaces never mix
	Contract  lode.Contract
	Limits    lode.Limits
	Args      []string
	Env       map[string]string // of commands, and op config
	Reuse     bool              // keep sandboxes dirty between invocations
	OKExit    []int             // exit codes of commands that are no failure; empty: 0 alone
}

// Program is loaded code with its warm snapshot, from which sandboxes are made.
type Program interface {
	// Sandbox makes a clean sandbox. It is cheap (microseconds to a
	// millisecond) once the snapshot exists; the first call makes that.
	Sandbox(ctx context.Context) (Sandbox, error)
	// Bytes is what the program holds in memory: code and image.
	Bytes() int64
	// Close frees the program when its last sandbox is closed.
	Close() error
}

// Sandbox runs one invocation at a time. It is used by one goroutine at a
// time.
type Sandbox interface {
	// Invoke runs one invocation to its end. The error is nil when the guest
	// answered, however bad the status it chose; Crashed with Guest set when it
	// trapped, exited or failed; Deadline, Cancelled, TooLarge, Overloaded.
	Invoke(ctx context.Context, inv *Invocation) error
	// Reset makes the sandbox clean again and reports whether that worked; if
	// not, it must be closed.
	Reset() bool
	// Memory is the bytes that the sandbox holds now.
	Memory() int64
	Close() error
}

// Invocation is one attempt as the engine sees it. The caller owns it and may
// reuse it when Invoke has returned.
type Invocation struct {
	ID       lode.InvocationID
	Head     []byte    // the encoded request head (abi message without body)
	Body     []byte    // the body, or its first part
	Stream   io.Reader // the rest of the body, or nil. Read by at most one goroutine
	Out      Answer
	Host     Host
	Slot     Slot      // nil: none to give back
	Deadline time.Time // zero: none
	Windows  Windows   // jobs only, else nil

	// Sandbox is the number of the one that is to run it, if that is idle, and
	// then of the one that does; 0: any. No two sandboxes of an Engine, ever,
	// have the same number.
	Sandbox uint64
	// Apart gives the sandbox a new number once it has run this: nobody who
	// asks for the one it had finds what this has left there.
	Apart bool
	// Placed is told which sandbox it will be, before Head is read. Nil:
	// nobody is.
	Placed Placed

	Usage lode.Usage // filled by Invoke
	// ExitCode is what a command exited with, or 0.
	ExitCode int
	// Reply is what the guest has answered and Out was not given: filled by the
	// driver, handed on by Pool.Invoke when the sandbox is back. After a crash
	// it holds what would have been answered. Its memory is used again.
	Reply Reply
}

// Placed is told of the sandbox that was taken for an invocation.
type Placed interface {
	// Placed may still change inv.Head. same says that it is the sandbox that
	// inv.Sandbox asked for.
	Placed(inv *Invocation, same bool)
}

// Reply is an answer on its way. Drivers append to it and hand it to Out
// themselves, with Flush, only when it grows over ReplyMax.
type Reply struct {
	Head []byte // encoded pairs, without a body; empty: none given
	Body []byte
	Sent bool // Out.Head was called
}

// ReplyMax is the number of bytes of a Reply's body above which a driver hands
// it on before the guest has ended.
const ReplyMax = 64 << 10

// Flush hands on what is in Reply, the head first. It may block as long as Out
// does.
func (inv *Invocation) Flush() error {
	r := &inv.Reply
	if inv.Out == nil {
		return nil
	}
	if !r.Sent {
		r.Sent = true
		head := r.Head
		if len(head) == 0 {
			head = noHead[:]
		}
		if err := inv.Out.Head(head); err != nil {
			return err
		}
	}
	if len(r.Body) == 0 {
		return nil
	}
	_, err := inv.Out.Write(r.Body)
	r.Body = r.Body[:0]
	return err
}

// noHead is the head of a message without pairs.
var noHead [4]byte

// Interrupter is implemented by a Stream whose Read can block for long.
// Interrupt makes the Read under way, and all later ones, return soon. A Stream
// without it that is an io.Closer is closed instead; without both the end of
// the invocation waits for the Read under way.
type Interrupter interface{ Interrupt() }

// Keyer is implemented by drivers that can tell before compiling where
// compiled code belongs.
type Keyer interface {
	// Key names the code of module: Fingerprint and the digest of everything
	// that goes into the code. Modules with equal keys share code.
	Key(module []byte) string
}

// Describer is implemented by drivers that can tell what Compile tells from
// code compiled before.
type Describer interface {
	Describe(ctx context.Context, module, code []byte, l lode.Limits) (*Info, error)
}

// Answer takes what the guest answers. Its methods are called from the
// goroutine of Invoke only, Head at most once and before Write.
type Answer interface {
	// Head gives the pairs of the answer, encoded (abi message without body).
	// It is valid until Head returns.
	Head(head []byte) error
	// Write gives body bytes, valid until Write returns. It may block: the
	// engine calls it outside the sandbox's computing time.
	Write(p []byte) (int, error)
}

// Host performs the operations that a guest submits. It is implemented where
// the invocation's rights are known.
type Host interface {
	// Submit starts an operation and returns at once. done must be called
	// exactly once, from any goroutine, also after ctx (the invocation's, or
	// cancelled by the guest) has ended. req is owned by the callee.
	Submit(ctx context.Context, op abi.Op, req lode.Message, done func(lode.Message, error))
	// Log takes one line, at most 64 KiB, valid until Log returns.
	Log(level int, line []byte)
}

// Slot is the invocation's share of the CPU. The engine gives it back while
// the guest waits, so that a waiting guest holds no core.
type Slot interface {
	// Leave gives the slot back; without one it does nothing. It is also called
	// after parts of a streamed answer were given to Out: they should go out.
	Leave()
	Enter(ctx context.Context) error
}

// Turner is an optional ability of a Slot: to let others have their turn while
// a guest computes on and on.
type Turner interface {
	// Turn says that the guest has computed for used since it began, came back
	// from a wait, or was here the last time: a millisecond, about. It returns
	// when the guest may go on; after an error it must not, and holds nothing.
	Turn(ctx context.Context, used time.Duration) error
}

// Windows gives a job's shard.
type Windows interface {
	// File returns a file descriptor to map and its size; the file is never
	// truncated while in use.
	File() (fd uintptr, size int64)
	ReadAt(p []byte, off int64) (int, error)
}
