package worker

import (
	"bufio"
	"context"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"

	"lode"
)

// process is a running worker.
//
//	running --its output ends, or stop--> over
type process struct {
	d   *Driver
	ns  lode.Namespace
	cmd *exec.Cmd
	in  io.WriteCloser
	w   *writer
	end chan struct{} // closed when it is over, and waited for

	mu    sync.Mutex
	asked map[uint64]chan *frame // requests
	calls map[uint64]*inbox      // invocations
	why   error                  // set before end is closed
	alone int                    // invocations under way when it ended
}

// start starts a worker and the goroutine that reads from it, which ends with
// it.
func (d *Driver) start(ns lode.Namespace) (*process, error) {
	p := &process{d: d, ns: ns, end: make(chan struct{}), asked: map[uint64]chan *frame{}, calls: map[uint64]*inbox{}}
	p.cmd = exec.Command(d.c.Command[0], d.c.Command[1:]...)
	p.cmd.Env = d.c.Env
	isolate(p.cmd)
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stderr = &logWriter{d: d, ns: ns}
	p.in, p.w = in, newWriter(in)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.read(out)
	return p, nil
}

// read hands frames out until there are no more, then ends everything.
func (p *process) read(out io.Reader) {
	r := bufio.NewReaderSize(out, 64<<10)
	for {
		f, err := readFrame(r)
		if err != nil {
			break
		}
		p.hand(f)
	}
	p.in.Close()
	p.cmd.Process.Kill() // it may have closed its output only
	err := p.cmd.Wait()
	state := "it ended"
	if err != nil {
		state = err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.alone = len(p.calls)
	p.why = lode.Errorf(lode.Unavailable, "the worker of namespace %s is gone: %s", p.ns, state).WithHint("it is started again for the next invocation")
	close(p.end)
}

func (p *process) hand(f *frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.Kind == kReply {
		if c := p.asked[f.ID]; c != nil {
			delete(p.asked, f.ID)
			c <- f // has room for it
		}
		return
	}
	if in := p.calls[f.ID]; in != nil {
		in.put(f)
	}
}

func (p *process) over() bool {
	select {
	case <-p.end:
		return true
	default:
		return false
	}
}

// gone is the error of what was under way when the process ended. If it was
// one invocation alone, that is to blame.
func (p *process) gone() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.alone != 1 {
		return p.why
	}
	e := lode.Errorf(lode.Crashed, "%s", strings.Replace(p.why.Error(), "is gone", "was ended by this invocation", 1))
	e.Guest = &lode.GuestError{Type: "worker", Message: p.why.Error()}
	return e
}

// ask sends a request and waits for its reply.
func (p *process) ask(ctx context.Context, f *frame) (*frame, error) {
	f.ID = p.d.next.Add(1)
	c := make(chan *frame, 1)
	p.mu.Lock()
	p.asked[f.ID] = c
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.asked, f.ID)
		p.mu.Unlock()
	}()
	if err := p.w.send(f); err != nil && !p.over() {
		<-p.end // a broken pipe: the reader sees it too
	}
	select {
	case r := <-c:
		return r, plain(r.Err)
	case <-p.end:
		return nil, p.why
	case <-ctx.Done():
		return nil, lode.Errorf(lode.Cancelled, "waiting for a worker: %w", ctx.Err())
	}
}

// tell sends what has no answer. Errors show at the reader.
func (p *process) tell(f *frame, body ...[]byte) { p.w.send(f, body...) }

// stop ends the worker and waits for it. It may tidy up first.
func (p *process) stop() {
	p.in.Close()
	t := time.AfterFunc(p.d.c.Grace, p.kill)
	defer t.Stop()
	<-p.end
}

// kill ends the worker without waiting.
func (p *process) kill() { p.cmd.Process.Kill() }

// inbox is the queue of one invocation's frames. It is not bounded by itself:
// the worker waits for an answer to all but operations, which are bounded.
type inbox struct {
	mu    sync.Mutex
	queue []*frame
	ready chan struct{} // holds a token when queue is not empty
}

func newInbox() *inbox { return &inbox{ready: make(chan struct{}, 1)} }

func (in *inbox) put(f *frame) {
	in.mu.Lock()
	in.queue = append(in.queue, f)
	in.mu.Unlock()
	select {
	case in.ready <- struct{}{}:
	default:
	}
}

func (in *inbox) get() []*frame {
	in.mu.Lock()
	defer in.mu.Unlock()
	q := in.queue
	in.queue = nil
	return q
}

// logWriter logs a worker's standard error by lines.
type logWriter struct {
	d    *Driver
	ns   lode.Namespace
	part string
}

func (w *logWriter) Write(b []byte) (int, error) {
	lines := strings.Split(w.part+string(b), "\n")
	w.part = lines[len(lines)-1]
	if len(w.part) > 64<<10 {
		w.part = ""
	}
	for _, l := range lines[:len(lines)-1] {
		if strings.TrimSpace(l) != "" {
			w.d.c.Logger.Warn("worker", "namespace", w.ns, "line", l)
		}
	}
	return len(b), nil
}
