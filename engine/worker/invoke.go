package worker

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"lode"
	"lode/engine"
	"lode/sdk/abi"
)

// Pather is implemented by Windows whose file has a path that a worker can
// open. On Linux others are opened by way of this process.
type Pather interface{ Path() string }

// shardPath is where a worker finds the file of w.
func shardPath(w engine.Windows) (string, error) {
	if p, ok := w.(Pather); ok {
		return p.Path(), nil
	}
	if runtime.GOOS == "linux" {
		fd, _ := w.File()
		return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), nil
	}
	return "", lode.Errorf(lode.Unavailable, "the shard has no path")
}

// Invoke implements engine.Sandbox: it sends the invocation and serves what
// the worker asks for until it is done. Out, Host and Slot are used from this
// goroutine alone.
func (s *sandbox) Invoke(ctx context.Context, inv *engine.Invocation) error {
	c := &call{Invocation: inv.ID, HeadLen: len(inv.Head), Stream: inv.Stream != nil, Slot: inv.Slot != nil, Host: inv.Host != nil}
	if !inv.Deadline.IsZero() {
		c.Deadline = inv.Deadline.UnixNano()
	}
	if inv.Windows != nil {
		path, err := shardPath(inv.Windows)
		if err != nil {
			return err
		}
		_, size := inv.Windows.File()
		c.Shard, c.ShardSize = path, size
	}
	x := &exchange{s: s, inv: inv, id: s.p.d.next.Add(1), in: newInbox(), cancels: map[uint64]context.CancelFunc{}}
	x.ctx, x.stop = context.WithCancel(ctx)
	s.proc.mu.Lock()
	s.proc.calls[x.id] = x.in
	s.proc.mu.Unlock()
	defer x.close()
	if err := s.proc.w.send(&frame{Kind: kInvoke, ID: x.id, Sandbox: s.id, Call: c}, inv.Head, inv.Body); err != nil {
		if lode.KindOf(err) == lode.TooLarge {
			return err
		}
		<-s.proc.end
	}
	return x.serve(ctx)
}

// exchange is one invocation on the node's side.
type exchange struct {
	s       *sandbox
	inv     *engine.Invocation
	id      uint64
	in      *inbox
	ctx     context.Context // of operations
	stop    context.CancelFunc
	cancels map[uint64]context.CancelFunc
	reads   *reader // nil: nothing of the stream was asked for
}

// close drops what is under way.
func (x *exchange) close() {
	x.stop()
	x.s.proc.mu.Lock()
	delete(x.s.proc.calls, x.id)
	x.s.proc.mu.Unlock()
	if x.reads != nil {
		x.reads.close(x.inv.Stream)
	}
}

func (x *exchange) serve(ctx context.Context) error {
	cancelled := ctx.Done()
	grace := time.NewTimer(time.Hour)
	grace.Stop()
	defer grace.Stop()
	if d := x.inv.Deadline; !d.IsZero() {
		// It may be over already; the worker still gets its time to say so.
		grace.Reset(max(time.Until(d), 0) + x.s.p.d.c.Grace)
	}
	for {
		select {
		case <-x.in.ready:
			for _, f := range x.in.get() {
				if f.Kind == kDone {
					return x.done(f)
				}
				x.handle(f)
			}
		case <-x.s.proc.end:
			return x.s.proc.gone()
		case <-cancelled:
			cancelled = nil
			x.s.proc.tell(&frame{Kind: kCancel, ID: x.id})
			grace.Reset(x.s.p.d.c.Grace)
		case <-grace.C:
			x.s.proc.kill()
		}
	}
}

// done takes over what the worker's driver has filled.
func (x *exchange) done(f *frame) error {
	d := f.Done
	if d == nil || d.HeadLen < 0 || d.HeadLen > len(f.body) {
		return errFrame
	}
	inv, queued := x.inv, x.inv.Usage
	inv.Usage, inv.ExitCode = d.Usage, d.ExitCode
	inv.Usage.Queued, inv.Usage.Wall, inv.Usage.Cold, inv.Usage.LogDropped = queued.Queued, queued.Wall, queued.Cold, queued.LogDropped
	inv.Reply.Head = append(inv.Reply.Head[:0], f.body[:d.HeadLen]...)
	inv.Reply.Body = append(inv.Reply.Body[:0], f.body[d.HeadLen:]...)
	inv.Reply.Sent = d.Sent
	x.s.memory = d.Memory
	return plain(f.Err)
}

// handle serves one frame.
func (x *exchange) handle(f *frame) {
	proc := x.s.proc
	ack := func(err error) { proc.tell(&frame{Kind: kAck, ID: x.id, Op: f.Op, Err: asError(err)}) }
	switch f.Kind {
	case kSubmit:
		x.submit(f)
	case kOpCancel:
		if cancel := x.cancels[f.Op]; cancel != nil {
			cancel()
		}
	case kLog:
		if x.inv.Host != nil {
			x.inv.Host.Log(int(f.Num), f.body)
		}
		ack(nil)
	case kHead:
		ack(x.inv.Out.Head(f.body))
	case kWrite:
		_, err := x.inv.Out.Write(f.body)
		ack(err)
	case kLeave:
		if x.inv.Slot != nil {
			x.inv.Slot.Leave()
		}
	case kEnter:
		var err error
		if x.inv.Slot != nil {
			err = x.inv.Slot.Enter(x.ctx)
		}
		ack(err)
	case kRead:
		x.read(f)
	}
}

// submit passes an operation to the host.
func (x *exchange) submit(f *frame) {
	proc, id, op := x.s.proc, x.id, f.Op
	ctx, cancel := context.WithCancel(x.ctx)
	x.cancels[op] = cancel
	reply := func(m lode.Message, err error) {
		cancel()
		proc.tell(&frame{Kind: kOpDone, ID: id, Op: op, Err: asError(err)}, encodeMessage(m))
	}
	req, err := decodeMessage(f.body)
	if err == nil && x.inv.Host != nil {
		x.inv.Host.Submit(ctx, abi.Op(f.Num), req, reply)
		return
	}
	reply(lode.Message{}, lode.Errorf(lode.Unavailable, "operations are not available here"))
}

// reader reads the request's stream in a goroutine of its own, since a Read
// may block for long.
type reader struct {
	want chan *frame
	done chan struct{}
}

func (x *exchange) read(f *frame) {
	if x.inv.Stream == nil {
		return
	}
	if x.reads == nil {
		r := &reader{want: make(chan *frame, 1), done: make(chan struct{})}
		x.reads = r
		go func() {
			defer close(r.done)
			for f := range r.want {
				b := make([]byte, min(max(f.Num, 1), 1<<20))
				n, err := x.inv.Stream.Read(b)
				d := &frame{Kind: kData, ID: x.id, Op: f.Op, OK: err == io.EOF}
				if !d.OK {
					d.Err = asError(err)
				}
				x.s.proc.tell(d, b[:n])
			}
		}()
	}
	select {
	case x.reads.want <- f:
	default: // one at a time: the worker breaks the protocol
	}
}

func (r *reader) close(stream io.Reader) {
	close(r.want)
	switch s := stream.(type) {
	case engine.Interrupter:
		s.Interrupt()
	case io.Closer:
		s.Close()
	}
	<-r.done
}
