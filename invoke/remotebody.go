package invoke

import (
	"io"
	"sync"
	"sync/atomic"

	"lode/engine"
)

// replayMost is how much of a streamed body is kept so that it can be sent to
// another node.
const replayMost = 64 << 10

// replay is a streamed body that may be sent more than once. Its first bytes
// are kept, and more is not read before a node has admitted the request.
type replay struct {
	src     io.Reader
	reading atomic.Bool

	mu   sync.Mutex // held over a Read of src
	kept []byte     // what was read; all of it, if not past
	past bool       // more was read than is kept
	over bool       // src must not be read any more
	err  error      // how src ended
}

// whole reports whether all that was read is kept.
func (r *replay) whole() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.past
}

// view is the body from its beginning.
func (r *replay) view() *replayView {
	return &replayView{r: r, open: make(chan struct{}), gone: make(chan struct{})}
}

// close ends all reading of src: a Read that waits is interrupted where src
// can do that, and waited for.
func (r *replay) close() {
	if r.reading.Load() {
		r.interrupt()
	}
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
}

func (r *replay) interrupt() {
	switch s := r.src.(type) {
	case engine.Interrupter:
		s.Interrupt()
	case io.Closer:
		s.Close()
	}
}

// replayView is one sending of a replay. Read is called by one goroutine at a
// time, the rest from any.
type replayView struct {
	r        *replay
	pos      int
	once     sync.Once
	finish   sync.Once
	open     chan struct{} // closed: more may be read than is kept
	gone     chan struct{} // closed: nobody reads it any more
	admitted atomic.Bool
}

// admit lets the view read on past what is kept.
func (v *replayView) admit() {
	if v != nil {
		v.once.Do(func() { close(v.open) })
	}
}

// end makes the view read nothing more, also where a Read waits.
func (v *replayView) end() { v.finish.Do(func() { close(v.gone) }) }

// Read reads what is kept, then the source.
func (v *replayView) Read(p []byte) (int, error) {
	for {
		n, err, wait := v.read(p)
		if !wait {
			return n, err
		}
		select {
		case <-v.open:
			v.admitted.Store(true)
		case <-v.gone:
			return 0, io.ErrClosedPipe
		}
	}
}

// read reads, or says that it has to be admitted first.
func (v *replayView) read(p []byte) (n int, err error, wait bool) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-v.gone:
		return 0, io.ErrClosedPipe, false
	default:
	}
	switch {
	case v.pos < len(r.kept):
		n = copy(p, r.kept[v.pos:])
		v.pos += n
		return n, nil, false
	case r.err != nil:
		return 0, r.err, false
	case r.over:
		return 0, io.ErrClosedPipe, false
	case len(p) == 0:
		return 0, nil, false
	case r.past || len(r.kept) >= replayMost:
		if !v.admitted.Load() {
			return 0, nil, true
		}
		n, r.err = r.fill(p)
		r.past = r.past || n > 0
		return n, r.err, false
	}
	n, r.err = r.fill(p[:min(len(p), replayMost-len(r.kept))])
	r.kept = append(r.kept, p[:n]...)
	v.pos += n
	if n > 0 {
		return n, nil, false
	}
	return n, r.err, false
}

// fill reads src; r.mu is held.
func (r *replay) fill(p []byte) (int, error) {
	r.reading.Store(true)
	defer r.reading.Store(false)
	return r.src.Read(p)
}

// Close makes a Read that waits return, where the source can do that.
func (v *replayView) Close() error {
	v.end()
	if v.r.reading.Load() {
		v.r.interrupt()
	}
	return nil
}

var _ io.ReadCloser = (*replayView)(nil)

// arrivalBody is the streamed body of an invocation from another node. The
// link's reader waits for the caller whatever happens here; this one can be
// closed, so that a guest that has answered does not wait for what its caller
// may send yet. Its goroutine reads ahead by one chunk; it ends with the body,
// or soon after the link's handler has returned.
type arrivalBody struct {
	s    *Service
	src  io.Reader
	once sync.Once
	r    *io.PipeReader
	w    *io.PipeWriter
}

func newArrivalBody(s *Service, src io.Reader) *arrivalBody {
	b := &arrivalBody{s: s, src: src}
	b.r, b.w = io.Pipe()
	return b
}

// Read gives what has arrived, or waits.
func (b *arrivalBody) Read(p []byte) (int, error) {
	b.once.Do(func() {
		b.s.under.Add(1) // Drain waits for it, as for the invocation itself
		go func() {
			defer b.s.end()
			_, err := io.Copy(b.w, b.src)
			b.w.CloseWithError(err)
		}()
	})
	return b.r.Read(p)
}

// Close makes a Read that waits return, and all later ones.
func (b *arrivalBody) Close() error { return b.r.Close() }

var _ io.ReadCloser = (*arrivalBody)(nil)
