package member

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"lode"
)

// Handlers take over authenticated connections. Each is called on a goroutine
// of its own; the connection is closed when it returns, and while it runs when
// the node at the other end is removed or the Listener closed. A nil one
// refuses its protocol.
type Handlers struct {
	Link func(conn net.Conn, from lode.NodeID)
	Bus  func(conn net.Conn, from lode.NodeID)
	Join *Joins
}

// ListenConfig says where the peer port is and whom it serves. Identity and
// Members are needed.
type ListenConfig struct {
	Addr     string // HOST:PORT; port 0 takes a free one
	Identity *Identity
	Members  *Members
	Handlers Handlers
	// Handshake is how long a stranger may take to prove itself; 0 = 5 s.
	Handshake time.Duration
	// Strangers bounds the connections that have not proved themselves yet, in
	// all and, to a quarter, of one address; 0 = 256.
	Strangers int
	Logger    *slog.Logger // nil: slog.Default
}

// Listener is the peer port.
type Listener struct {
	cfg     ListenConfig
	ln      net.Listener
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
	once    sync.Once

	mu        sync.Mutex
	closed    bool
	conns     map[net.Conn]*guest
	strangers int            // connections without a name
	byAddr    map[string]int // the same, by address
	refused   map[string]uint64
	said      map[string]time.Time // when a refusal was last logged, by reason and address
}

// guest is a connection that was accepted.
type guest struct {
	host   string
	node   lode.NodeID // "" until it is known
	serial string
}

// Listen opens the peer port.
func Listen(ctx context.Context, cfg ListenConfig) (*Listener, error) {
	cfg.Handshake, cfg.Strangers = cmp.Or(cfg.Handshake, 5*time.Second), cmp.Or(cfg.Strangers, 256)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, lode.Errorf(lode.Unavailable, "listen for other nodes on %s: %w", cfg.Addr, err).WithHint("choose other ports with --port, or another address with --bind")
	}
	l := &Listener{cfg: cfg, ln: ln, conns: map[net.Conn]*guest{}, byAddr: map[string]int{}, refused: map[string]uint64{}, said: map[string]time.Time{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.running.Go(l.accept)
	l.running.Go(l.watch)
	return l, nil
}

// Addr is where the Listener listens.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Close ends every connection and waits for their handlers. It may be called
// again.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.stop()
		l.ln.Close()
		l.mu.Lock()
		l.closed = true
		for c := range l.conns {
			c.Close()
		}
		l.mu.Unlock()
	})
	l.running.Wait()
	return nil
}

// Refused counts refusals by reason: see the Why constants.
func (l *Listener) Refused() map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.refused)
}

// watch ends the connections of nodes that do not belong to the cluster any
// more, at each change of Members.
func (l *Listener) watch() {
	changed := make(chan struct{}, 1)
	defer l.cfg.Members.tell(changed)()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-changed:
			l.recheck()
		}
	}
}

func (l *Listener) recheck() {
	all := map[net.Conn]guest{}
	l.mu.Lock()
	for c, g := range l.conns {
		if g.node != "" {
			all[c] = *g
		}
	}
	l.mu.Unlock()
	for c, g := range all {
		if err := l.cfg.Members.Check(g.node, g.serial); err != nil {
			l.refuse(c, whyOf(err), err)
			c.Close()
		}
	}
}

func (l *Listener) accept() {
	for n := 0; ; n++ {
		c, err := l.ln.Accept()
		if err == nil {
			n = -1
			noticeSilence(c)
			if l.enter(c) {
				l.running.Go(func() { l.serve(c) })
			}
			continue
		}
		if l.ctx.Err() != nil {
			return
		}
		l.cfg.Logger.Error("the peer port cannot accept connections", "error", err)
		if (wallClock{}).Sleep(l.ctx, backoff(n, 10*time.Millisecond, time.Second)) != nil {
			return
		}
	}
}

// enter counts a stranger in, or closes its connection.
func (l *Listener) enter(c net.Conn) bool {
	host := hostOf(c)
	l.mu.Lock()
	ok := !l.closed && l.strangers < l.cfg.Strangers && l.byAddr[host] < max(1, l.cfg.Strangers/4)
	if ok {
		l.conns[c] = &guest{host: host}
		l.strangers++
		l.byAddr[host]++
	}
	l.mu.Unlock()
	if !ok {
		l.refuse(c, WhyTooMany, lode.Errorf(lode.Overloaded, "too many connections at once"))
		c.Close()
	}
	return ok
}

// known notes who a stranger is. False: the Listener is closed.
func (l *Listener) known(c net.Conn, node lode.NodeID, serial string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.conns[c]
	if ok && g.node == "" {
		l.noStranger(g)
		g.node, g.serial = node, serial
	}
	return ok && !l.closed
}

func (l *Listener) leave(c net.Conn) {
	c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if g, ok := l.conns[c]; ok && g.node == "" {
		l.noStranger(g)
	}
	delete(l.conns, c)
}

func (l *Listener) noStranger(g *guest) {
	l.strangers--
	if l.byAddr[g.host]--; l.byAddr[g.host] == 0 {
		delete(l.byAddr, g.host)
	}
}

// serve has one connection from its first byte to its last.
func (l *Listener) serve(raw net.Conn) {
	defer l.leave(raw)
	var offered []string
	conn := tls.Server(raw, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		offered = h.SupportedProtos
		if len(offered) == 1 && offered[0] == join {
			return l.cfg.Identity.joinTLS(), nil
		}
		return l.cfg.Identity.ServerTLS(), nil
	}})
	raw.SetDeadline(time.Now().Add(l.cfg.Handshake))
	if err := conn.HandshakeContext(l.ctx); err != nil {
		if bad, ok := errors.AsType[tls.RecordHeaderError](err); ok && bad.Conn != nil {
			hint(bad.Conn, bad.RecordHeader)
		}
		l.refuse(raw, whyHandshake(err, offered), err)
		return
	}
	switch conn.ConnectionState().NegotiatedProtocol {
	case join:
		l.serveJoin(conn)
	case Link:
		l.serveNode(raw, conn, l.cfg.Handlers.Link)
	case Bus:
		l.serveNode(raw, conn, l.cfg.Handlers.Bus)
	default:
		l.refuse(raw, WhyProtocol, lode.Errorf(lode.Invalid, "none of Lode's protocols was asked for"))
	}
}

func (l *Listener) serveJoin(conn *tls.Conn) {
	if l.cfg.Handlers.Join == nil {
		err := lode.Errorf(lode.Unavailable, "node %s takes no joiners", l.cfg.Identity.Node()).WithHint("join through another node")
		l.refuse(conn, WhyJoin, err)
		if writeMessage(conn, msgProblem, err) == nil {
			finish(conn)
		}
		return
	}
	if err := l.cfg.Handlers.Join.serve(l.ctx, conn); err != nil {
		l.refuse(conn, WhyJoin, err)
	}
}

func (l *Listener) serveNode(raw net.Conn, conn *tls.Conn, handle func(net.Conn, lode.NodeID)) {
	node, serial, err := l.cfg.Identity.peer(conn.ConnectionState())
	if err == nil {
		err = l.cfg.Members.Check(node, serial)
	}
	if err == nil && handle == nil {
		err = lode.Errorf(lode.Unavailable, "node %s is not ready for that yet", l.cfg.Identity.Node()).WithHint("try again in a moment")
	}
	if err != nil {
		l.refuse(raw, whyOf(err), err)
		greet(conn, lode.AsError(err))
		return
	}
	if !l.known(raw, node, serial) || greet(conn, nil) != nil {
		return
	}
	// A removal between Check and known would have been missed by recheck.
	if err := l.cfg.Members.look(node, serial); lode.KindOf(err) == lode.Gone {
		l.refuse(raw, whyOf(err), err)
		return
	}
	conn.SetDeadline(time.Time{})
	handle(conn, node)
}

// The greeting of the peer port.
const (
	greetWelcome = 0
	greetRefused = 1
	maxProblem   = 16 << 10
)

// greet tells a node that it is welcome, or why it is not.
func greet(w io.Writer, problem *lode.Error) error {
	msg := []byte{greetWelcome}
	if problem != nil {
		b, err := json.Marshal(problem)
		if err != nil || len(b) > maxProblem {
			return errors.Join(err, io.ErrShortWrite)
		}
		msg = append(binary.BigEndian.AppendUint32([]byte{greetRefused}, uint32(len(b))), b...)
	}
	_, err := w.Write(msg)
	return err
}

// readGreeting is nil for a welcome, and the other side's error for a refusal.
func readGreeting(r io.Reader) error {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return err
	}
	if head[0] == greetWelcome {
		return nil
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if head[0] != greetRefused || n > maxProblem {
		return lode.Errorf(lode.Invalid, "the other side does not greet as a Lode node does")
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return readProblem(b)
}

// readProblem makes another node's problem+json an error.
func readProblem(b []byte) error {
	var e lode.Error
	if err := json.Unmarshal(b, &e); err != nil || e.Kind == "" {
		return lode.Errorf(lode.Invalid, "the other side sends an error that cannot be read")
	}
	return &e
}

// hint answers those who do not speak TLS, where they are likely to read it.
func hint(c net.Conn, head [5]byte) {
	for _, method := range []string{"GET ", "HEAD ", "POST", "PUT ", "OPTI", "DELE", "PATC", "CONN", "PRI "} {
		if strings.HasPrefix(string(head[:]), method) {
			const say = "This is the port for other Lode nodes. The gateway is one port below.\n"
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"+say)
			if half, ok := c.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
				io.CopyN(io.Discard, c, maxRequest) // a close with bytes unread would take the answer back
			}
			return
		}
	}
}

func hostOf(c net.Conn) string {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return host
}
