package agent

import (
	"context"
	"io"
	"strings"
	"sync"
	"time"

	"lode"
)

// outgoing brings frames to the gateways that hold the sockets: one goroutine a
// node, in order, as long as there is something.
type outgoing struct {
	s      *Service
	mu     sync.Mutex
	lines  map[lode.NodeID]*outline
	closed bool
	work   sync.WaitGroup
}

// outline is what waits for one node.
type outline struct {
	frames []lode.SocketFrame
	busy   bool
}

func newOutgoing(s *Service) *outgoing { return &outgoing{s: s, lines: map[lode.NodeID]*outline{}} }

// maxFrames bounds what waits for a node that takes nothing.
const maxFrames = 1 << 14

// send gives frames to the gateways of their sockets; it does not wait.
func (s *Service) send(frames []lode.SocketFrame) {
	if len(frames) > 0 {
		s.out.send(frames)
	}
}

func (o *outgoing) send(frames []lode.SocketFrame) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range frames {
		node, _, _ := strings.Cut(f.Socket, "~")
		l := o.lines[lode.NodeID(node)]
		if l == nil {
			l = &outline{}
			o.lines[lode.NodeID(node)] = l
		}
		if o.closed || len(l.frames) >= maxFrames {
			continue // as if the socket had been cut
		}
		l.frames = append(l.frames, f)
		if !l.busy {
			l.busy = true
			o.work.Go(func() { o.run(lode.NodeID(node), l) })
		}
	}
}

func (o *outgoing) run(node lode.NodeID, l *outline) {
	for {
		o.mu.Lock()
		frames := l.frames
		l.frames = nil
		if len(frames) == 0 || o.closed {
			l.busy = false
			delete(o.lines, node)
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		ctx, cancel := context.WithTimeout(o.s.ctx, 10*time.Second)
		gone, err := o.s.cfg.Sockets.Deliver(ctx, node, frames)
		cancel()
		if err != nil {
			o.s.log().Debug("frames for sockets did not arrive", "node", node, "frames", len(frames), "err", err)
		}
		_ = gone // their gateway tells the agents
	}
}

func (o *outgoing) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.work.Wait()
}

// readAll reads a body that is bounded.
func readAll(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, lode.Errorf(lode.Cancelled, "the body of a call broke off: %w", err)
	}
	if int64(len(b)) > most {
		return nil, lode.Errorf(lode.TooLarge, "the body of a call is over %d bytes", most)
	}
	return b, nil
}
