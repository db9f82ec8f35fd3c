package gateway

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"sync"

	"lode"
)

// socketSet is the WebSockets that this node holds, by their ids.
type socketSet struct {
	ctx     context.Context // of what sockets call; over when they are cut
	cancel  context.CancelFunc
	running sync.WaitGroup // one for each socket whose end the agent must learn

	mu    sync.Mutex
	list  map[string]*socket
	ended bool // no more sockets
}

func newSocketSet() *socketSet {
	s := &socketSet{list: map[string]*socket{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// open makes a socket that has no connection yet; what its agent tells it
// already is kept. Give it a connection or drop it.
func (l *socketSet) open(g *Gateway, v *visit) (*socket, error) {
	var random [16]byte
	rand.Read(random[:]) // never fails
	s := &socket{g: g, ns: lode.Namespace(strings.Clone(string(v.c.ns))), kind: lode.Name(strings.Clone(string(v.kind))), key: strings.Clone(v.key)}
	s.id = g.cfg.Node + "~" + hex.EncodeToString(random[:])
	s.in.owner, s.in.limit, s.in.quiet, s.in.within = s, bodyLimit(v.fn.Limits.Body), g.cfg.PingEvery, g.cfg.FirstTimeout
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil, lode.Errorf(lode.Unavailable, "this node stops").WithHint("go to another node")
	}
	l.list[s.id] = s
	l.running.Add(1)
	return s, nil
}

// drop forgets a socket: nobody will see or tell anything of it any more.
func (l *socketSet) drop(s *socket) {
	l.mu.Lock()
	delete(l.list, s.id)
	l.mu.Unlock()
	l.running.Done()
}

func (l *socketSet) lookup(id string) *socket {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list[id]
}

func (l *socketSet) refuseMore() []*socket {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	all := make([]*socket, 0, len(l.list))
	for _, s := range l.list {
		all = append(all, s)
	}
	return all
}

// end closes all sockets and waits until their agents know; when ctx is done
// first it cuts them.
func (l *socketSet) end(ctx context.Context) {
	for _, s := range l.refuseMore() {
		s.shut(closeRestart, "the node stops", dropBacklog)
	}
	defer context.AfterFunc(ctx, func() {
		l.cancel()
		l.cut()
	})()
	l.running.Wait()
	l.cancel()
}

// cut ends all sockets at once.
func (l *socketSet) cut() {
	l.cancel()
	for _, s := range l.refuseMore() {
		s.cut()
	}
	l.running.Wait()
}

// Deliver hands frames to the WebSockets that they are for, all of which this
// node holds. The frames of one socket must come in order: one whose N was seen
// is dropped. A frame is taken, not written, when Deliver returns: it waits for
// no client, and closes the socket of one that is too slow. gone are the
// sockets that are closed, or are being closed, each once: the agent was told so,
// or will be, by a close or error event, unless the gateway died with them. It
// keeps nothing of frames and may be called by several goroutines.
func (g *Gateway) Deliver(ctx context.Context, frames []lode.SocketFrame) (gone []string, err error) {
	told := map[string]bool(nil)
	for i := range frames {
		if err := ctx.Err(); err != nil {
			return gone, err
		}
		f := &frames[i]
		if s := g.sockets.lookup(f.Socket); s != nil && s.take(f) || told[f.Socket] {
			continue
		}
		if told == nil {
			told = map[string]bool{}
		}
		told[f.Socket] = true
		gone = append(gone, f.Socket)
	}
	return gone, nil
}
