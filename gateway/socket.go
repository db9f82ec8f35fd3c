package gateway

import (
	"errors"
	"net"
	"sync"
	"time"

	"lode"
)

const (
	// maxBacklog bounds the bytes that wait for a client; one frame may be
	// larger.
	maxBacklog = 1 << 20
	// closeWait bounds the wait for the client's answer to a close frame.
	closeWait = 5 * time.Second
)

// socket is one WebSocket of an agent.
//
//	pending -101-> open -close frame, either way-> closing -> closed
//	   \-other answer: dropped   \------- lost, cut -------/
//
// One goroutine reads; it is all that an idle socket has. Another writes while
// there is something to write, and a third waits for the agent while it handles
// a message. A message waits for the one before it, and the client is not read
// meanwhile but for the frame behind it, so that pings are answered and a close
// is seen while the agent works.
type socket struct {
	g    *Gateway
	id   string // NODE~random
	ns   lode.Namespace
	kind lode.Name
	key  string

	// The reader's.
	in     inbox
	events uint64    // handed to the agent
	turn   chan bool // gives a token when the message under way is done; nil: never was one
	busy   bool      // a message is under way

	flushes sync.WaitGroup // the writer

	mu      sync.Mutex
	seen    uint64 // the last frame taken from the agent
	out     []byte // frames to write
	pong    []byte // one to write before them
	lead    []byte // the head of the answer to the request, before all
	marks   marks  // what out holds
	backlog int    // bytes taken and not written
	writing bool
	ping    pingState
	closing bool
	closeBy time.Time // closing: when to give up
	ending  ending    // closing: what the agent will be told
}

// marks is what frames in a batch need more than being written.
type marks struct{ ping, close bool }

type pingState byte

const (
	pingNone pingState = iota
	pingWaits
	pingSent // an answer is due
)

// ending is how a socket ended.
type ending struct {
	event  string // close, or error
	code   int
	reason string
	clean  bool // both sides have sent a close frame
}

// errClosed ends the reading after the client's close frame.
var errClosed = errors.New("the client closed")

// What becomes of the frames before a close frame.
const (
	keepBacklog = false
	dropBacklog = true
)

// take takes a frame from the agent; false: the socket is closed.
func (s *socket) take(f *lode.SocketFrame) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case f.N <= s.seen:
		return true
	case s.closing:
		return false
	}
	s.seen = f.N
	if f.Close {
		code := f.Code
		if !sendable(code) {
			code = closeNormal
		}
		s.shutLocked(code, string(f.Data), keepBacklog)
		return true
	}
	if s.backlog > 0 && s.backlog+len(f.Data) > maxBacklog {
		s.shutLocked(closeSlow, "the client reads too slowly", dropBacklog)
		return false
	}
	op := byte(opText)
	if f.Binary {
		op = opBinary
	}
	s.add(op, f.Data)
	return true
}

// add queues a frame.
func (s *socket) add(op byte, payload []byte) {
	before := len(s.out)
	s.out = appendFrame(s.out, op, payload)
	s.backlog += len(s.out) - before
	s.kick()
}

// kick starts the writer if there is work for one.
func (s *socket) kick() {
	if s.in.conn == nil || s.writing || len(s.lead)+len(s.pong)+len(s.out) == 0 {
		return
	}
	s.writing = true
	s.flushes.Go(s.flush)
}

// flush is the writer.
func (s *socket) flush() {
	for {
		bufs, out, m := s.batch()
		if bufs == nil {
			return
		}
		_, err := bufs.WriteTo(s.in.conn)
		s.wrote(out, m, err)
	}
}

// batch takes all that waits; out is how much of it is backlog. nil: nothing.
func (s *socket) batch() (bufs net.Buffers, out int, m marks) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lead)+len(s.pong)+len(s.out) == 0 {
		s.writing = false
		return nil, 0, marks{}
	}
	bufs, out, m = net.Buffers{s.lead, s.pong, s.out}, len(s.out), s.marks
	s.lead, s.pong, s.out, s.marks = nil, nil, nil, marks{}
	at := time.Now().Add(s.g.cfg.BodyTimeout)
	if s.closing {
		at = s.closeBy
	}
	_ = s.in.conn.SetWriteDeadline(at)
	return bufs, out, m
}

func (s *socket) wrote(n int, m marks, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backlog -= n
	switch {
	case err != nil:
		s.out, s.pong, s.backlog = nil, nil, 0
		_ = s.in.conn.Close() // the reader finds out
	case m.close:
		s.giveUpAt(time.Now().Add(closeWait))
	case m.ping && s.ping == pingWaits:
		s.ping = pingSent
	}
}

// giveUpAt says when closing ends at the latest.
func (s *socket) giveUpAt(at time.Time) {
	s.closeBy = at
	if s.in.conn != nil {
		_ = s.in.conn.SetReadDeadline(at)
		_ = s.in.conn.SetWriteDeadline(at)
	}
}

// shut begins to close the socket from this side, unless that has begun.
func (s *socket) shut(code int, reason string, drop bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shutLocked(code, reason, drop)
}

func (s *socket) shutLocked(code int, reason string, drop bool) {
	if s.closing {
		return
	}
	s.closing = true
	s.ending = ending{event: "close", code: code, reason: reason}
	wait := s.g.cfg.BodyTimeout // for what is queued before it; see wrote
	if drop {
		wait = closeWait
		s.backlog -= len(s.out)
		s.out = nil
	}
	s.giveUpAt(time.Now().Add(wait))
	s.marks.close = true
	s.add(opClose, closePayload(code, reason))
}

// cut ends the socket at once.
func (s *socket) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in.conn != nil {
		_ = s.in.conn.Close()
	}
}

// arm bounds the reader's next wait.
func (s *socket) arm(within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := time.Now().Add(within)
	if s.closing && s.closeBy.Before(at) {
		at = s.closeBy
	}
	_ = s.in.conn.SetReadDeadline(at)
}

// idle is called when no frame began for a while.
func (s *socket) idle() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		if time.Now().Before(s.closeBy) {
			return nil
		}
		return lode.Errorf(lode.Deadline, "the client did not answer the close frame")
	}
	if s.in.heard {
		s.in.heard, s.ping = false, pingNone
	}
	switch s.ping {
	case pingNone:
		s.ping = pingWaits
		s.marks.ping = true
		s.add(opPing, nil)
	case pingSent:
		return lode.Errorf(lode.Deadline, "the client did not answer a ping")
	}
	return nil // a ping that waits behind much else is no reason to give up: the writer has its own
}

// control handles a control frame.
func (s *socket) control(op byte, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case op == opPing && !s.closing:
		s.pong = appendFrame(nil, opPong, payload) // only the last ping must be answered
		s.kick()
	case op == opClose:
		code, reason, err := parseClose(payload)
		if err != nil {
			return err
		}
		if !s.closing {
			s.shutLocked(code, reason, dropBacklog)
		}
		s.ending.clean = true
		return errClosed
	}
	return nil
}

var _ inboxOwner = (*socket)(nil)
