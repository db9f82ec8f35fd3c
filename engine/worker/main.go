package worker

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"lode"
	"lode/engine"
	"lode/sdk/abi"
)

// Main is a worker: it serves what comes from in until that ends, and waits
// for what is under way to be stopped. d runs the guests and is closed. The
// command calls it with its standard input and output, and writes nothing else
// to the latter.
func Main(ctx context.Context, in io.Reader, out io.Writer, d engine.Driver) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &server{ctx: ctx, d: d, w: newWriter(out), programs: map[uint64]engine.Program{}, sandboxes: map[uint64]*held{}, calls: map[uint64]*remote{}}
	r := bufio.NewReaderSize(in, 64<<10)
	var err error
	for err == nil {
		var f *frame
		if f, err = readFrame(r); err == nil {
			s.handle(f)
		}
	}
	cancel()
	s.stopAll()
	s.wg.Wait()
	for _, h := range s.sandboxes {
		h.sb.Close()
	}
	for _, p := range s.programs {
		p.Close()
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// server is the worker's side.
type server struct {
	ctx context.Context
	d   engine.Driver
	w   *writer
	wg  sync.WaitGroup // requests and invocations under way

	mu        sync.Mutex
	programs  map[uint64]engine.Program
	sandboxes map[uint64]*held
	calls     map[uint64]*remote
}

// held is a sandbox; mu is held while it is used.
type held struct {
	mu sync.Mutex
	sb engine.Sandbox
}

// handle starts what a frame asks for. What the node sends for one sandbox
// comes one after the other: it waits for each reply.
func (s *server) handle(f *frame) {
	switch f.Kind {
	case kLoad, kSandbox, kReset:
		s.wg.Go(func() { s.reply(f) })
	case kInvoke:
		s.begin(f)
	case kUnload:
		s.mu.Lock()
		p := s.programs[f.Program]
		delete(s.programs, f.Program)
		s.mu.Unlock()
		if p != nil {
			p.Close()
		}
	case kClose:
		s.mu.Lock()
		h := s.sandboxes[f.Sandbox]
		delete(s.sandboxes, f.Sandbox)
		s.mu.Unlock()
		if h != nil {
			s.wg.Go(func() {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.sb.Close()
			})
		}
	default:
		s.mu.Lock()
		r := s.calls[f.ID]
		s.mu.Unlock()
		if r != nil {
			r.handle(f)
		}
	}
}

// reply serves a request.
func (s *server) reply(f *frame) {
	out := &frame{Kind: kReply, ID: f.ID}
	var err error
	switch f.Kind {
	case kLoad:
		err = s.load(f)
	case kSandbox:
		out.Num, err = s.sandbox(f)
	case kReset:
		if h := s.held(f.Sandbox); h != nil {
			h.mu.Lock()
			out.OK, out.Num = h.sb.Reset(), h.sb.Memory()
			h.mu.Unlock()
		}
	}
	out.Err = asError(err)
	s.w.send(out)
}

func (s *server) load(f *frame) error {
	if f.Load == nil {
		return errFrame
	}
	module, err := os.ReadFile(f.Load.Module)
	if err != nil {
		return err
	}
	code, err := os.ReadFile(f.Load.Code)
	if err != nil {
		return err
	}
	p, err := s.d.Load(s.ctx, module, code, f.Load.Config)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.programs[f.Program] = p
	return nil
}

func (s *server) sandbox(f *frame) (int64, error) {
	s.mu.Lock()
	p := s.programs[f.Program]
	s.mu.Unlock()
	if p == nil {
		return 0, errFrame
	}
	sb, err := p.Sandbox(s.ctx)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sandboxes[f.Sandbox] = &held{sb: sb}
	return sb.Memory(), nil
}

func (s *server) held(id uint64) *held {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sandboxes[id]
}

// begin starts an invocation.
func (s *server) begin(f *frame) {
	h := s.held(f.Sandbox)
	if h == nil || f.Call == nil || f.Call.HeadLen < 0 || f.Call.HeadLen > len(f.body) {
		s.w.send(&frame{Kind: kDone, ID: f.ID, Err: errFrame, Done: &done{}})
		return
	}
	r := &remote{s: s, id: f.ID, waiting: map[uint64]chan *frame{}, ops: map[uint64]func(lode.Message, error){}}
	r.ctx, r.cancel = context.WithCancel(s.ctx)
	s.mu.Lock()
	s.calls[f.ID] = r
	s.mu.Unlock()
	s.wg.Go(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		r.run(h.sb, f)
	})
}

// stopAll wakes what waits for the node, which is gone.
func (s *server) stopAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.calls {
		r.cancel()
	}
}

// remote is one invocation on the worker's side: Out, Host, Slot and the
// stream, all of them at the node.
type remote struct {
	s      *server
	id     uint64
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan *frame               // for kAck and kData
	ops     map[uint64]func(lode.Message, error) // under way
}

func (r *remote) run(sb engine.Sandbox, f *frame) {
	c := f.Call
	inv := &engine.Invocation{ID: c.Invocation, Head: f.body[:c.HeadLen], Body: f.body[c.HeadLen:], Out: r}
	if c.Deadline != 0 {
		inv.Deadline = time.Unix(0, c.Deadline)
	}
	if c.Host {
		inv.Host = r
	}
	if c.Slot {
		inv.Slot = r
	}
	if c.Stream {
		inv.Stream = stream{r}
	}
	err := r.windows(c, inv)
	if err == nil {
		err = sb.Invoke(r.ctx, inv)
	}
	r.cancel()
	r.s.mu.Lock()
	delete(r.s.calls, r.id)
	r.s.mu.Unlock()
	d := &done{Usage: inv.Usage, ExitCode: inv.ExitCode, Memory: sb.Memory(), HeadLen: len(inv.Reply.Head), Sent: inv.Reply.Sent}
	r.s.w.send(&frame{Kind: kDone, ID: r.id, Err: asError(err), Done: d}, inv.Reply.Head, inv.Reply.Body)
	if w, ok := inv.Windows.(*fileWindows); ok {
		// The sandbox may still have it mapped; the map outlives the file.
		w.f.Close()
	}
}

func (r *remote) windows(c *call, inv *engine.Invocation) error {
	if c.Shard == "" {
		return nil
	}
	f, err := os.Open(c.Shard)
	if err != nil {
		return lode.Errorf(lode.Unavailable, "the worker cannot open the shard: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() < c.ShardSize {
		err = lode.Errorf(lode.Damaged, "the shard %s has %d bytes, not %d", c.Shard, st.Size(), c.ShardSize)
	}
	if err != nil {
		f.Close()
		return err
	}
	inv.Windows = &fileWindows{f, c.ShardSize}
	return nil
}

type fileWindows struct {
	f    *os.File
	size int64
}

// File implements engine.Windows.
func (w *fileWindows) File() (uintptr, int64) { return w.f.Fd(), w.size }

// ReadAt implements engine.Windows.
func (w *fileWindows) ReadAt(p []byte, off int64) (int, error) { return w.f.ReadAt(p, off) }

// handle takes a frame of this invocation.
func (r *remote) handle(f *frame) {
	switch f.Kind {
	case kCancel:
		r.cancel()
	case kOpDone:
		r.mu.Lock()
		done := r.ops[f.Op]
		delete(r.ops, f.Op)
		r.mu.Unlock()
		if done == nil {
			return
		}
		m, err := decodeMessage(f.body)
		if f.Err != nil {
			err = f.Err
		}
		done(m, err)
	case kAck, kData:
		r.mu.Lock()
		c := r.waiting[f.Op]
		delete(r.waiting, f.Op)
		r.mu.Unlock()
		if c != nil {
			c <- f // has room for it
		}
	}
}

// ask sends f and waits for its answer, or for the invocation's end.
func (r *remote) ask(f *frame, body []byte) (*frame, error) {
	c := make(chan *frame, 1)
	r.mu.Lock()
	r.next++
	f.ID, f.Op = r.id, r.next
	r.waiting[f.Op] = c
	r.mu.Unlock()
	if err := r.s.w.send(f, body); err != nil {
		return nil, err
	}
	select {
	case a := <-c:
		return a, plain(a.Err)
	case <-r.ctx.Done():
		return nil, r.ctx.Err()
	}
}

// Head implements engine.Answer.
func (r *remote) Head(head []byte) error {
	_, err := r.ask(&frame{Kind: kHead}, head)
	return err
}

// Write implements engine.Answer.
func (r *remote) Write(p []byte) (int, error) {
	if _, err := r.ask(&frame{Kind: kWrite}, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Log implements engine.Host. It waits, so that a guest cannot flood the node.
func (r *remote) Log(level int, line []byte) { r.ask(&frame{Kind: kLog, Num: int64(level)}, line) }

// Submit implements engine.Host.
func (r *remote) Submit(ctx context.Context, op abi.Op, req lode.Message, done func(lode.Message, error)) {
	r.mu.Lock()
	r.next++
	id := r.next
	r.ops[id] = done
	r.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		r.s.w.send(&frame{Kind: kOpCancel, ID: r.id, Op: id})
		r.handle(&frame{Kind: kOpDone, Op: id, Err: lode.Errorf(lode.Cancelled, "cancelled")})
	})
	r.mu.Lock()
	if r.ops[id] != nil {
		r.ops[id] = func(m lode.Message, err error) { stop(); done(m, err) }
	}
	r.mu.Unlock()
	r.s.w.send(&frame{Kind: kSubmit, ID: r.id, Op: id, Num: int64(op)}, encodeMessage(req))
}

// Leave implements engine.Slot.
func (r *remote) Leave() { r.s.w.send(&frame{Kind: kLeave, ID: r.id}) }

// Enter implements engine.Slot.
func (r *remote) Enter(context.Context) error {
	_, err := r.ask(&frame{Kind: kEnter}, nil)
	return err
}

// stream is the rest of the request's body.
type stream struct{ r *remote }

// Read implements io.Reader. It ends with the invocation.
func (s stream) Read(p []byte) (int, error) {
	f, err := s.r.ask(&frame{Kind: kRead, Num: int64(len(p))}, nil)
	if f == nil {
		return 0, err
	}
	n := copy(p, f.body)
	if f.OK {
		err = io.EOF
	}
	return n, err
}

// Interrupt implements engine.Interrupter.
func (s stream) Interrupt() { s.r.cancel() }

var (
	_ engine.Answer      = (*remote)(nil)
	_ engine.Host        = (*remote)(nil)
	_ engine.Slot        = (*remote)(nil)
	_ engine.Windows     = (*fileWindows)(nil)
	_ engine.Interrupter = stream{}
)
