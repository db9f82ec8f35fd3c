package lode

import (
	"context"
	"os"
	"syscall"
	"unsafe"

	"lode/sdk/abi"
)

// pending is an operation under way.
type pending struct {
	done chan struct{}
	abi.Completion
}

// operations are those under way. The guest has one thread and is never
// preempted, so a map and two flags need no lock.
var operations = struct {
	open    map[uint32]*pending
	reading bool // a goroutine reads fd
	fd      *os.File
}{}

// operate starts an operation and waits for its end. Other goroutines run on.
// When ctx ends the operation is asked to end too.
func operate(ctx context.Context, op abi.Op, m message) (message, error) {
	b := m.append(nil)
	id := hostSubmit(uint32(op), start(b), uint32(len(b)))
	if id <= 0 {
		return message{}, refused(id)
	}
	p := &pending{done: make(chan struct{})}
	if operations.open == nil {
		operations.open = make(map[uint32]*pending)
	}
	operations.open[uint32(id)] = p
	look()
	if operations.open[uint32(id)] != nil {
		if err := await(ctx, id, p); err != nil {
			return message{}, err
		}
	}
	return take(id, p)
}

func refused(rc int32) error {
	switch rc {
	case abi.TooMany:
		return &Error{Kind: Overloaded, Detail: "1,024 operations are under way in this invocation"}
	case abi.UnknownOp:
		return &Error{Kind: Unavailable, Detail: "this node does not know the operation"}
	}
	return &Error{Kind: Invalid, Detail: "the operation's request is not valid: over 16 MiB, or a field over 64 KiB"}
}

// await waits for p, or for ctx and then for the cancelled p.
func await(ctx context.Context, id int32, p *pending) error {
	if !operations.reading {
		operations.reading = true
		go dispatch()
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		hostCancel(id)
		<-p.done
		take(id, p)
		return ctx.Err()
	}
}

func take(id int32, p *pending) (message, error) {
	b := make([]byte, max(p.Length, 4))
	n := hostTake(id, start(b), uint32(len(b)))
	if n < 0 || int(n) > len(b) {
		return message{}, &Error{Kind: Internal, Detail: "a completed operation has no result"}
	}
	m, err := parse(b[:n])
	if p.Status != 0 {
		return m, errorOf(p.Status, m)
	}
	return m, err
}

// complete wakes whoever waits for c.
func complete(c abi.Completion) {
	if p := operations.open[c.ID]; p != nil {
		delete(operations.open, c.ID)
		p.Completion = c
		close(p.done)
	}
}

// look takes the completions that are there without waiting: what the host
// answers at once costs neither a goroutine nor a poll.
func look() {
	var out [12]byte
	for hostWait(0, unsafe.Pointer(&out)) == 1 {
		c, _ := abi.DecodeCompletion(out[:])
		complete(c)
	}
}

// dispatch parks on the completion descriptor while anything is under way.
func dispatch() {
	defer func() { operations.reading = false }()
	if operations.fd == nil {
		syscall.SetNonblock(abi.CompletionFD, true) // else the file would block the whole guest
		operations.fd = os.NewFile(abi.CompletionFD, "lode")
	}
	var buf [12 * 64]byte
	for len(operations.open) > 0 {
		n, err := operations.fd.Read(buf[:])
		if err != nil {
			blockingDispatch()
			return
		}
		for b := buf[:n]; len(b) >= 12; b = b[12:] {
			c, _ := abi.DecodeCompletion(b)
			complete(c)
		}
	}
}

// blockingDispatch serves a host without the descriptor: operations overlap,
// but nothing else runs while one is awaited.
func blockingDispatch() {
	for len(operations.open) > 0 {
		var out [12]byte
		if hostWait(-1, unsafe.Pointer(&out)) != 1 {
			return
		}
		c, _ := abi.DecodeCompletion(out[:])
		complete(c)
	}
}
