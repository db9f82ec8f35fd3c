package gateway

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"lode"
)

const (
	// Inline is how many bytes of a body are there before the function
	// starts; a body up to this size is always there whole.
	Inline = 64 << 10
	// DefaultBody is lode.Limits.Body where it is zero.
	DefaultBody = 6 << 20
	// inlineWait is how long the door waits for the first Inline bytes of a
	// body of unknown length: its client may be waiting for an answer before
	// it sends more.
	inlineWait = 20 * time.Millisecond
	// unreadWait bounds how long net/http looks for the end of a body that
	// nobody wanted, before it may answer the connection's next request.
	unreadWait = 5 * time.Second
)

// readBody reads the first part of the body into x.req.Body and makes the
// rest, if any, x.req.Stream. limit is on a body of declared length; one that
// is sent in chunks may be of any size.
func (x *exchange) readBody(w http.ResponseWriter, r *http.Request, limit int64) error {
	n := r.ContentLength
	switch {
	case n == 0 || r.Body == nil || r.Body == http.NoBody:
		return nil
	case n > bodyLimit(limit):
		return lode.Errorf(lode.TooLarge, "the body has %d bytes; the function takes %d", n, bodyLimit(limit)).
			WithHint("raise body under its limits, or send it with Transfer-Encoding: chunked")
	case n < 0:
		return x.readUnknown(w, r)
	}
	first := int(min(n, Inline))
	x.grow(first)
	if err := x.readDeclared(w, r, first); err != nil {
		return err
	}
	x.req.Body = x.inline[:first]
	if n > Inline {
		x.stream(newUpload(w, r.Body, x.g.cfg.BodyTimeout))
	}
	return nil
}

func bodyLimit(limit int64) int64 {
	if limit <= 0 {
		return DefaultBody
	}
	return limit
}

func (x *exchange) grow(n int) {
	if cap(x.inline) < n {
		x.inline = make([]byte, max(n, 4<<10))
	}
	x.inline = x.inline[:n]
}

// readDeclared fills x.inline[:first], and bounds the client's slowness in
// doing so: a sandbox is not yet held, but a goroutine and its buffers are.
func (x *exchange) readDeclared(w http.ResponseWriter, r *http.Request, first int) error {
	setReadDeadline(w, time.Now().Add(x.g.cfg.FirstTimeout))
	got, err := io.ReadFull(r.Body, x.inline[:first])
	if got < first {
		return bodyError(err) // the deadline stays, for net/http reads on to find the next request
	}
	setReadDeadline(w, time.Time{}) // or net/http would take it for the client's leaving
	return nil
}

// setReadDeadline is ResponseController's, without the allocation.
func setReadDeadline(w http.ResponseWriter, at time.Time) {
	if d, ok := w.(interface{ SetReadDeadline(time.Time) error }); ok {
		_ = d.SetReadDeadline(at)
	}
}

// bodyError says what a failed read of a body means.
func bodyError(err error) error {
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return lode.Errorf(lode.TooLarge, "the body is over %d bytes", big.Limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return lode.Errorf(lode.Deadline, "the body did not come in time: %w", err)
	}
	return lode.Errorf(lode.Cancelled, "the body ended early: %w", err)
}

// readUnknown takes what comes within inlineWait of a body whose length was
// not declared; if that is all of it, it is as if it had been.
func (x *exchange) readUnknown(w http.ResponseWriter, r *http.Request) error {
	p := newPump(r.Body)
	u := newUpload(w, p, x.g.cfg.BodyTimeout)
	go p.run()
	t := time.NewTimer(inlineWait)
	defer t.Stop()
	select {
	case <-p.ended:
	case <-t.C:
		x.stream(u)
		return nil
	}
	body, err := p.take()
	if err != nil && err != io.EOF {
		return bodyError(err)
	}
	x.inline = body
	x.req.Body = body
	if err == nil {
		u.r = r.Body
		x.stream(u)
	}
	return nil
}

// stream hands the rest of the body over. Without full duplex, net/http would
// wait for all of it before the first byte of the answer.
func (x *exchange) stream(u *upload) {
	_ = u.rc.EnableFullDuplex() // HTTP/2 always is
	x.up = u
	x.req.Stream = u
}

// readAll reads a body that a door must have whole.
func (x *exchange) readAll(w http.ResponseWriter, r *http.Request, limit int64) error {
	if r.ContentLength > limit {
		return lode.Errorf(lode.TooLarge, "the body has %d bytes; at most %d", r.ContentLength, limit)
	}
	if r.ContentLength == 0 || r.Body == nil {
		return nil
	}
	setReadDeadline(w, time.Now().Add(x.g.cfg.FirstTimeout))
	var b []byte
	var err error
	if n := r.ContentLength; n > 0 {
		x.grow(int(n))
		b = x.inline
		_, err = io.ReadFull(r.Body, b)
	} else {
		b, err = io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	}
	if err != nil {
		return bodyError(err) // the deadline stays, as above
	}
	setReadDeadline(w, time.Time{})
	x.inline, x.req.Body = b, b
	return nil
}

// upload is the rest of a body. Its Close may be called from another goroutine
// than Read's, and makes a Read that waits return.
type upload struct {
	r       io.Reader
	idle    time.Duration
	rc      *http.ResponseController
	reading sync.Mutex // held during a Read

	mu     sync.Mutex
	closed bool
	over   bool // the end was read
}

func newUpload(w http.ResponseWriter, r io.Reader, idle time.Duration) *upload {
	return &upload{r: r, idle: idle, rc: http.NewResponseController(w)}
}

// Read reads on, waiting at most BodyTimeout.
func (u *upload) Read(p []byte) (int, error) {
	u.reading.Lock()
	defer u.reading.Unlock()
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return 0, lode.Errorf(lode.Cancelled, "the request is over")
	}
	_ = u.rc.SetReadDeadline(time.Now().Add(u.idle))
	u.mu.Unlock()
	n, err := u.r.Read(p)
	if err == io.EOF {
		u.ended()
	} else if err != nil {
		err = bodyError(err)
	}
	return n, err
}

// ended takes the deadline away: net/http watches the connection for the
// client's leaving from here on, and would take a late one for that.
func (u *upload) ended() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	if !u.closed {
		_ = u.rc.SetReadDeadline(time.Time{})
	}
}

// Close ends the upload; what was not read is given up.
func (u *upload) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.closed {
		u.closed = true
		if !u.over {
			_ = u.rc.SetReadDeadline(time.Unix(1, 0))
		}
	}
	return nil
}

// finish ends the upload for the door: afterwards nobody reads the body any
// more. The connection stays usable unless a read had to be broken off.
func (u *upload) finish() {
	if u.idleNow() {
		return
	}
	_ = u.Close()
	u.reading.Lock() // waits for a Read that is on its way out
	p, pumped := u.r.(*pump)
	u.reading.Unlock()
	if pumped {
		<-p.ended
	}
}

// idleNow closes u and reports true if nobody is reading.
func (u *upload) idleNow() bool {
	if p, ok := u.r.(*pump); ok {
		select {
		case <-p.ended:
		default:
			return false
		}
	}
	if !u.reading.TryLock() {
		return false
	}
	defer u.reading.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.closed && !u.over {
		_ = u.rc.SetReadDeadline(time.Now().Add(unreadWait)) // net/http reads on to find the next request
	}
	u.closed = true
	return true
}

var _ io.ReadCloser = (*upload)(nil)

// pump reads the first Inline bytes of a body in a goroutine of its own, so
// that the door need not wait for them. Its owner closes the connection's
// reading side and waits for ended. Read is its other end.
type pump struct {
	body  io.Reader
	ended chan struct{} // closed when run is over: the buffer is full or err is set
	more  chan struct{} // has a token when something changed

	mu  sync.Mutex
	buf []byte
	off int // read so far by Read
	err error
}

func newPump(body io.Reader) *pump {
	return &pump{body: body, ended: make(chan struct{}), more: make(chan struct{}, 1), buf: make([]byte, 0, 4<<10)}
}

func (p *pump) run() {
	defer close(p.ended)
	var chunk [4 << 10]byte
	for {
		p.mu.Lock()
		room := min(Inline-len(p.buf), len(chunk))
		p.mu.Unlock()
		if room == 0 {
			return
		}
		n, err := p.body.Read(chunk[:room])
		p.mu.Lock()
		p.buf = append(p.buf, chunk[:n]...)
		p.err = err
		p.mu.Unlock()
		select {
		case p.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// take returns what was read once run is over: all of the body if err is
// io.EOF, its first part if err is nil.
func (p *pump) take() ([]byte, error) { return p.buf, p.err }

// Read gives the buffered bytes, then those behind them.
func (p *pump) Read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		if p.off < len(p.buf) {
			n := copy(b, p.buf[p.off:])
			p.off += n
			p.mu.Unlock()
			return n, nil
		}
		err := p.err
		p.mu.Unlock()
		if err != nil {
			return 0, err
		}
		select {
		case <-p.more:
		case <-p.ended:
			if p.pending() {
				continue
			}
			return p.body.Read(b)
		}
	}
}

func (p *pump) pending() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.off < len(p.buf) || p.err != nil
}
