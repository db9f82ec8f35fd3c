package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"lode"
)

// helloTime is how long a peer may take for its hello, and a dial in all.
const helloTime = 3 * time.Second

// errPresent ends a dial: meanwhile the peer has dialled us.
var errPresent = errors.New("there is a connection already")

func (p *peer) hello(seq uint64) hello {
	return hello{least: protocol, most: protocol, instance: p.l.instance, seq: seq, from: string(p.l.cfg.Self), to: string(p.node)}
}

// dial connects to the peer and starts to read; an error says why not.
func (p *peer) dial(ctx context.Context) error {
	limit := helloTime
	if rtt := p.leastRTT(); rtt > 0 {
		limit = min(limit, max(helloTime/2, 10*rtt)) // what it took before tells how long to wait; the next try may find a healed network
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	nc, err := p.l.cfg.Dial(ctx, p.node)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { closeRaw(nc) })
	remote, err := p.greet(nc)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		stop()
		closeRaw(nc)
		return err
	}
	tune(nc, 3*p.l.cfg.LostAfter)
	c := newConn(p, nc, true, remote)
	if !p.adopt(c, func() {}) {
		closeRaw(nc)
		return errPresent
	}
	p.l.wg.Go(c.run)
	return nil
}

// greet says hello and hears the peer's.
func (p *peer) greet(nc net.Conn) (hello, error) {
	p.mu.Lock()
	if p.cur != nil {
		p.mu.Unlock()
		return hello{}, errPresent // so that a hello means: I have no other connection
	}
	seq := p.l.seq.Add(1)
	p.mu.Unlock()
	if _, err := nc.Write(appendHello(nil, p.hello(seq))); err != nil {
		return hello{}, err
	}
	return p.hearHello(nc)
}

// hearHello reads the other side's first frame and checks that it is for us.
func (p *peer) hearHello(nc net.Conn) (hello, error) {
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(nc, b); err != nil {
		return hello{}, err
	}
	h, err := parseHeader(b)
	if err == nil && h.kind != kindHello && h.kind != kindBye {
		err = fmt.Errorf("the first frame has kind 0x%02x", uint8(h.kind))
	}
	if err != nil {
		return hello{}, &protocolError{err}
	}
	b = make([]byte, h.size)
	if _, err := io.ReadFull(nc, b); err != nil {
		return hello{}, err
	}
	if h.kind == kindBye {
		return hello{}, fmt.Errorf("node %s refuses the connection: %s", p.node, cut(fmt.Sprintf("%q", b), maxBye))
	}
	got, err := parseHello(b)
	if err != nil {
		return hello{}, &protocolError{err}
	}
	return got, p.suits(got)
}

// suits checks a hello against who the peer is known to be.
func (p *peer) suits(h hello) error {
	switch {
	case h.least > protocol || h.most < protocol:
		return fmt.Errorf("it speaks versions %d to %d of the link, and node %s speaks %d: bring both to the same version of Lode", h.least, h.most, p.l.cfg.Self, protocol)
	case h.from != string(p.node):
		return fmt.Errorf("its certificate says %s and its hello %q", p.node, cut(h.from, 64))
	case h.to != string(p.l.cfg.Self):
		return fmt.Errorf("it looks for node %q and found %s", cut(h.to, 64), p.l.cfg.Self)
	}
	return nil
}

// Serve speaks with a peer over a connection that it opened, and returns when
// the connection has ended. conn is authenticated, and from is the name in the
// peer's certificate. A node that SetPeers has never named is served all the
// same: it may know of us before we know of it.
func (l *Link) Serve(nc net.Conn, from lode.NodeID) {
	l.mu.Lock()
	if l.closed || from == l.cfg.Self {
		l.mu.Unlock()
		closeRaw(nc)
		return
	}
	p := l.peerLocked(from)
	l.wg.Add(1) // under mu, before Close waits
	l.mu.Unlock()
	defer l.wg.Done()
	c, err := p.accept(nc)
	if err != nil {
		closeRaw(nc)
		if _, bad := errors.AsType[*protocolError](err); bad {
			p.refused.Add(1)
		}
		if err != errPresent && err != errRemoved && err != errClosing && err != io.EOF && !p.stopped() {
			l.log.Warn("a connection was refused", "node", from, "why", err)
		}
		return
	}
	c.run()
}

// accept hears the hello of a peer that dialled and answers it.
func (p *peer) accept(nc net.Conn) (*conn, error) {
	over := make(chan struct{})
	defer close(over)
	timer := time.AfterFunc(helloTime, func() { closeRaw(nc) })
	defer timer.Stop()
	p.l.wg.Go(func() { // Close does not wait for a peer that says nothing
		select {
		case <-p.l.done:
			closeRaw(nc)
		case <-over:
		}
	})
	remote, err := p.hearHello(nc)
	if err != nil {
		if _, bad := errors.AsType[*protocolError](err); !bad {
			nc.Write(appendFrame(nil, kindBye, byeRefused, 0, []byte(cut(err.Error(), maxBye))))
		}
		return nil, err
	}
	tune(nc, 3*p.l.cfg.LostAfter)
	c := newConn(p, nc, false, remote)
	if !p.adopt(c, func() { c.post(appendHello(nil, p.hello(p.l.seq.Add(1)))) }) {
		why := errPresent
		if p.stopped() {
			why = errClosing
		} else if p.isRemoved() {
			why = errRemoved
		}
		nc.Write(appendFrame(nil, kindBye, byeRefused, 0, []byte(why.Error())))
		return nil, why
	}
	c.mu.Lock()
	c.push(false)
	return c, nil
}

func (p *peer) isRemoved() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.removed
}
