package lode

import (
	"cmp"
	"context"
	"io"
	"strconv"
	"sync"
	"time"
)

// port is the way to the caller of one invocation: the guest ABI, or HTTP
// when run natively. It is used by one goroutine at a time.
type port interface {
	// read reads the request's body; io.EOF at its end.
	read(ctx context.Context, p []byte) (int, error)
	// respond begins the answer; body is its first part.
	respond(ctx context.Context, status int, head []pair, body []byte) error
	// write appends to the answer's body.
	write(ctx context.Context, p []byte) error
	// flush hands on what was written.
	flush(ctx context.Context) error
	// window lays the shard's bytes over p; see the ABI.
	window(offset int64, p []byte) (int64, error)
}

// invocation is what one call of a handler knows.
type invocation struct {
	request message // head only
	port    port
	native  context.Context // parent when run natively; nil in a guest
	agent   *instance       // whose turn it is; nil in a function
	failed  error           // of the turn, where the method had no way to return it
	upgrade bool            // the turn has accepted a socket

	once sync.Once
	done context.Context
	stop context.CancelFunc
}

var _ context.Context = (*invocation)(nil)

// invocationKey finds the invocation below contexts derived from it.
type invocationKey struct{}

// Deadline is when the caller stops waiting.
func (v *invocation) Deadline() (time.Time, bool) {
	ms, err := strconv.ParseInt(v.request.get(":deadline"), 10, 64)
	if err != nil || ms <= 0 {
		return time.Time{}, false
	}
	return time.UnixMilli(ms), true
}

// wake makes the timer behind Done. Most handlers never ask, and do not pay.
func (v *invocation) wake() context.Context {
	v.once.Do(func() {
		parent := v.native
		if parent == nil {
			parent = context.Background()
		}
		if d, ok := v.Deadline(); ok {
			v.done, v.stop = context.WithDeadline(parent, d)
		} else {
			v.done, v.stop = context.WithCancel(parent)
		}
	})
	return v.done
}

// end frees the timer, and cancels what still hangs on the context.
func (v *invocation) end() {
	v.once.Do(func() { v.done, v.stop = over, func() {} })
	v.stop()
}

// over is the context of what has ended before anybody asked for one.
var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (v *invocation) Done() <-chan struct{} { return v.wake().Done() }
func (v *invocation) Err() error {
	if v.stop == nil && v.native == nil {
		if d, ok := v.Deadline(); ok && !time.Now().Before(d) {
			return context.DeadlineExceeded
		}
		return nil
	}
	return v.wake().Err()
}

func (v *invocation) Value(key any) any {
	if _, ok := key.(invocationKey); ok {
		return v
	}
	if v.native != nil {
		return v.native.Value(key)
	}
	return nil
}

// body reads the whole request body.
func (v *invocation) body() ([]byte, error) {
	size := 512
	if n, err := strconv.Atoi(v.request.get("content-length")); err == nil && n >= 0 && n < 16<<20 {
		size = n + 1 // one more, so that the end is seen without growing
	}
	b := make([]byte, 0, size)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := v.port.read(v, b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
}

// Identity says which invocation of which function this is.
type Identity struct {
	Function  string // name of the function
	Namespace string
	Revision  string // ns/name@number, or a number
	ID        string // of the invocation
	Attempt   int    // 1, 2, 3
	Trigger   string // http, call, async, schedule, queue, job, merge, lambda, agent
	Due       string // schedule: the due time, RFC 3339; of a timer: Unix milliseconds
	Address   string // of the agent whose turn it is: kind/key
	Key       string // the key alone
	TurnID    string // of the turn; the same if it is run again
	Timer     string // name of the timer that is due
	Caller    string // address of the agent or function that calls; "" from outside
}

// Self tells a handler who it is. It costs no operation. Outside an invocation
// it is zero.
func Self(ctx context.Context) Identity {
	v, ok := ctx.Value(invocationKey{}).(*invocation)
	if !ok {
		return Identity{}
	}
	r := &v.request
	n, _ := strconv.Atoi(r.get(":attempt"))
	return Identity{Function: r.get(":function"), Namespace: r.get(":namespace"), Revision: r.get(":revision"), ID: r.get(":id"),
		Attempt: max(n, 1), Trigger: r.get(":kind"), Due: cmp.Or(r.get(":schedule"), r.get(":due")), Address: r.get(":address"), Key: r.get(":agent"),
		TurnID: r.get(":turn-id"), Timer: r.get(":timer"), Caller: r.get(":caller")}
}

// Header returns a header field of the request, or "". The name is in lower
// case. Route wildcards are fields too: ":route.id" is {id}.
func Header(ctx context.Context, name string) string {
	v, ok := ctx.Value(invocationKey{}).(*invocation)
	if !ok {
		return ""
	}
	return v.request.get(name)
}
