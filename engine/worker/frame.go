package worker

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"io"
	"sync"

	"lode"
	"lode/engine"
	"lode/sdk/abi"
)

// A frame is:
//
//	u32   length of the rest, little-endian, at most maxFrame
//	u32   length of the head
//	head  JSON: frame
//	body  the rest
//
// Both sides number their requests; a reply carries the number of what it
// answers. Everything of one invocation carries the invocation's number, which
// the node gives.
type frame struct {
	Kind kind   `json:"k"`
	ID   uint64 `json:"id,omitempty"` // of a request or an invocation
	Op   uint64 `json:"op,omitempty"` // of an operation, a write, a read within an invocation

	Program uint64      `json:"p,omitempty"`
	Sandbox uint64      `json:"s,omitempty"`
	Num     int64       `json:"n,omitempty"` // see the kinds
	OK      bool        `json:"ok,omitempty"`
	Err     *lode.Error `json:"err,omitempty"`
	Load    *load       `json:"load,omitempty"`
	Call    *call       `json:"call,omitempty"`
	Done    *done       `json:"done,omitempty"`
	body    []byte
}

type kind uint8

// From the node.
const (
	kLoad    kind = iota + 1 // Program, Load -> kReply
	kUnload                  // Program
	kSandbox                 // Program, Sandbox -> kReply with Num = memory
	kReset                   // Sandbox -> kReply with OK, Num = memory
	kClose                   // Sandbox
	kInvoke                  // ID, Sandbox, Call; body = request head and body -> kDone
	kCancel                  // ID
	kOpDone                  // ID, Op, Err; body = message
	kAck                     // ID, Op, Err: the answer to kHead, kWrite, kLog, kEnter
	kData                    // ID, Op, OK = the end; body = bytes of the stream
)

// From the worker.
const (
	kReply    kind = iota + 64 // ID, Err, ...
	kDone                      // ID, Done; body = reply's head and body
	kSubmit                    // ID, Op, Num = kind of operation; body = message
	kOpCancel                  // ID, Op
	kLog                       // ID, Op, Num = level; body = line -> kAck
	kHead                      // ID, Op; body -> kAck
	kWrite                     // ID, Op; body -> kAck
	kLeave                     // ID
	kEnter                     // ID, Op -> kAck
	kRead                      // ID, Op, Num = bytes wanted -> kData
)

// load is a program: files, since it may be loaded again after a crash.
type load struct {
	Module string        `json:"module"`
	Code   string        `json:"code"`
	Config engine.Config `json:"config"`
}

// call is an invocation.
type call struct {
	Invocation lode.InvocationID `json:"id"`
	HeadLen    int               `json:"head"`               // of the body, the rest is the request's
	Deadline   int64             `json:"deadline,omitempty"` // Unix nanoseconds
	Stream     bool              `json:"stream,omitempty"`
	Slot       bool              `json:"slot,omitempty"`
	Host       bool              `json:"host,omitempty"`
	Shard      string            `json:"shard,omitempty"` // path
	ShardSize  int64             `json:"shard_size,omitempty"`
}

// done is the end of an invocation.
type done struct {
	Usage    lode.Usage `json:"usage"`
	ExitCode int        `json:"exit,omitempty"`
	Memory   int64      `json:"memory"`
	HeadLen  int        `json:"head"`
	Sent     bool       `json:"sent,omitempty"`
}

// maxFrame holds a message, or a request's inline body, and more.
const maxFrame = 64 << 20

var errFrame = lode.Errorf(lode.Internal, "the worker protocol was violated")

// readFrame reads one frame. The body is the callee's.
func readFrame(r io.Reader) (*frame, error) {
	var n [8]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	all, head := binary.LittleEndian.Uint32(n[:]), binary.LittleEndian.Uint32(n[4:])
	if all > maxFrame || all < 4 || head > all-4 {
		return nil, errFrame
	}
	b := make([]byte, all-4)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	f := &frame{}
	if err := json.Unmarshal(b[:head], f); err != nil {
		return nil, errFrame
	}
	f.body = b[head:]
	return f, nil
}

// writer writes frames from many goroutines.
type writer struct {
	mu sync.Mutex
	w  *bufio.Writer
}

func newWriter(w io.Writer) *writer { return &writer{w: bufio.NewWriterSize(w, 64<<10)} }

func (w *writer) send(f *frame, body ...[]byte) error {
	head, err := json.Marshal(f)
	if err != nil {
		return err
	}
	n := 4 + len(head)
	for _, b := range body {
		n += len(b)
	}
	if n > maxFrame {
		return lode.Errorf(lode.TooLarge, "%d bytes are too many for a worker", n)
	}
	var size [8]byte
	binary.LittleEndian.PutUint32(size[:], uint32(n))
	binary.LittleEndian.PutUint32(size[4:], uint32(len(head)))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.w.Write(size[:]) // bufio keeps the first error for Flush
	w.w.Write(head)
	for _, b := range body {
		w.w.Write(b)
	}
	return w.w.Flush()
}

// encodeMessage and decodeMessage carry a message in a body.

func encodeMessage(m lode.Message) []byte {
	return append(engine.EncodeHead(nil, m.Head), m.Body...)
}

func decodeMessage(b []byte) (m lode.Message, err error) {
	m.Body, err = abi.Decode(b, func(k, v []byte) { m.Head = append(m.Head, lode.Pair{Key: string(k), Value: string(v)}) })
	return m, err
}

// asError makes err fit for a frame; nil stays nil.
func asError(err error) *lode.Error { return lode.AsError(err) }

// plain is the opposite: a nil *lode.Error must not become an error.
func plain(e *lode.Error) error {
	if e == nil {
		return nil
	}
	return e
}
