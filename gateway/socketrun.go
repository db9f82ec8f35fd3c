package gateway

import (
	"context"
	"errors"
	"io"
	"strconv"
	"time"

	"lode"
)

// How a message is tried again that the agent could not take: that is
// backpressure, not an end.
const (
	againFirst = 50 * time.Millisecond
	againMost  = 2 * time.Second
	againFor   = time.Minute
)

// run is the life of a socket that has a connection. It tells the agent of each
// message and, last, of the end.
func (s *socket) run() {
	defer s.g.sockets.drop(s)
	err := s.read()
	end := s.finish(err)
	s.settle()
	s.report(end)
}

// read hands messages to the agent until there are no more.
func (s *socket) read() error {
	for {
		op, body, err := s.in.message()
		if err != nil {
			return err
		}
		s.settle()
		if s.isClosing() {
			continue // nobody wants it any more
		}
		s.hand(op, body)
	}
}

func (s *socket) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// settle waits for the message under way.
func (s *socket) settle() {
	if s.busy {
		<-s.turn
		s.busy = false
	}
}

// hand begins a message.
func (s *socket) hand(op byte, body []byte) {
	if s.turn == nil {
		s.turn = make(chan bool, 1)
	}
	s.busy = true
	kind := "text"
	if op == opBinary {
		kind = "binary"
	}
	c := s.event("message", body, lode.Pair{Key: ":type", Value: kind})
	go func() {
		if err := s.call(c); err != nil {
			s.shut(closeFailed, string(lode.KindOf(err)), keepBacklog)
		}
		s.turn <- true
	}()
}

// event makes the call that tells the agent something.
func (s *socket) event(name string, body []byte, head ...lode.Pair) *lode.AgentCall {
	s.events++
	head = append([]lode.Pair{{Key: ":event", Value: name}, {Key: ":socket", Value: s.id}}, head...)
	return &lode.AgentCall{Namespace: s.ns, Kind: s.kind, Key: s.key, Turn: lode.TurnSocket,
		ID: s.id + "/" + strconv.FormatUint(s.events, 10), Head: head, Body: body}
}

// call makes the turn of c, again and again while the agent cannot take it.
func (s *socket) call(c *lode.AgentCall) error {
	ctx := s.g.sockets.ctx
	giveUp := time.Now().Add(againFor)
	for wait := againFirst; ; wait = min(2*wait, againMost) {
		again := *c
		_, err := s.g.cfg.Agents.Call(ctx, &again)
		kind := lode.KindOf(err)
		if kind != lode.Overloaded && kind != lode.Unavailable || time.Now().After(giveUp) {
			return err
		}
		if !pause(ctx, wait) {
			return err
		}
	}
}

// pause waits; false: ctx is over.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// finish ends the connection after the reading has ended with err, and says how
// the socket ended.
func (s *socket) finish(err error) ending {
	var wire *wireError
	broken := errors.As(err, &wire)
	s.mu.Lock()
	switch {
	case broken && !s.closing:
		s.shutLocked(wire.code, wire.reason, dropBacklog)
		s.ending = ending{event: "error", code: wire.code, reason: wire.reason}
	case !s.closing && !broken:
		s.closing = true
		s.ending = ending{event: "close", code: closeLost, reason: reasonOf(err)}
		s.out, s.pong, s.marks = nil, nil, marks{}
	}
	end := s.ending
	if err != errClosed && !broken {
		_ = s.in.conn.Close()
	}
	s.mu.Unlock()
	s.flushes.Wait()
	if broken {
		s.linger()
	}
	_ = s.in.conn.Close()
	return end
}

// linger lets the client read the close frame: a connection that is closed with
// bytes unread is reset, and what was sent last is lost with it.
func (s *socket) linger() {
	if half, ok := s.in.conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = s.in.conn.SetReadDeadline(time.Now().Add(closeWait))
		_, _ = io.CopyN(io.Discard, s.in.conn, maxBacklog) // what it says is not wanted
	}
}

// reasonOf is what the agent is told of a lost connection.
func reasonOf(err error) string {
	var e *lode.Error
	if errors.As(err, &e) {
		return e.Detail
	}
	return "the connection was lost"
}

// report tells the agent of the end, which is the last event of a socket.
func (s *socket) report(end ending) {
	clean := "0"
	if end.clean {
		clean = "1"
	}
	c := s.event(end.event, nil, lode.Pair{Key: ":code", Value: strconv.Itoa(end.code)}, lode.Pair{Key: ":reason", Value: end.reason}, lode.Pair{Key: ":clean", Value: clean})
	if err := s.call(c); err != nil {
		s.g.cfg.Log.Debug("an agent was not told of the end of a socket", "kind", s.kind, "key", s.key, "socket", s.id, "err", err)
	}
}
