package gateway

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"time"

	"lode"
)

// wantsSocket reports whether r asks for a WebSocket.
func wantsSocket(r *http.Request) bool {
	return r.ProtoMajor == 1 && listed(r.Header["Upgrade"], "websocket") && listed(r.Header["Connection"], "upgrade")
}

// handshake checks the request for a WebSocket and returns the answer to its
// key (RFC 6455, section 4.2).
func handshake(r *http.Request) (accept string, err error) {
	key := r.Header["Sec-Websocket-Key"]
	version := r.Header["Sec-Websocket-Version"]
	switch {
	case r.Method != http.MethodGet || r.ContentLength != 0:
		return "", lode.Errorf(lode.Invalid, "a WebSocket begins with a GET that has no body")
	case len(version) != 1 || version[0] != "13":
		return "", lode.Errorf(lode.Invalid, "only version 13 of WebSocket is spoken here")
	case len(key) != 1:
		return "", lode.Errorf(lode.Invalid, "want one Sec-WebSocket-Key")
	}
	if b, err := base64.StdEncoding.DecodeString(key[0]); err != nil || len(b) != 16 {
		return "", lode.Errorf(lode.Invalid, "Sec-WebSocket-Key is not 16 bytes in base64")
	}
	sum := sha1.Sum([]byte(key[0] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:]), nil
}

// upgrade is a request for a WebSocket: a fetch turn that may accept it. The
// socket is there before the turn, which may already send.
func (g *Gateway) upgrade(w http.ResponseWriter, r *http.Request, v *visit) {
	accept, err := handshake(r)
	if err != nil {
		w.Header()["Sec-Websocket-Version"] = []string{"13"}
		g.turnAway(w, r, v, err)
		return
	}
	s, err := g.sockets.open(g, v)
	if err != nil {
		g.turnAway(w, r, v, err)
		return
	}
	x := g.newExchange(w, r)
	x.ans.allow = v.allow
	rep, err := g.ask(x, r, v, s)
	switch {
	case err != nil:
		x.ans.fail(err)
		s.abandon(err)
	case rep.Status != http.StatusSwitchingProtocols:
		g.sockets.drop(s)
		x.ans.reply(rep)
		x.release()
	default:
		s.begin(w, switching(r, g, rep, accept))
		x.release()
	}
}

// ask makes the fetch turn. The client's leaving does not end it: whether the
// agent has accepted must be known.
func (g *Gateway) ask(x *exchange, r *http.Request, v *visit, s *socket) (*lode.AgentReply, error) {
	err := x.terms(r)
	x.req.IdempotencyKey = "" // each socket is another one
	if err == nil {
		x.pairs, err = appendHead(x.pairs, r, v.c.checked)
	}
	if err != nil {
		return nil, err
	}
	x.pairs = append(x.pairs, lode.Pair{Key: "upgrade", Value: "websocket"}, lode.Pair{Key: ":socket", Value: s.id})
	x.address(v, lode.TurnFetch)
	x.call.Method, x.call.Path = r.Method, v.path(r)
	returned := false
	defer func() {
		if !returned {
			g.sockets.drop(s)
		}
	}()
	rep, err := g.cfg.Agents.Call(g.sockets.ctx, &x.call)
	returned = true
	return rep, err
}

// switching is the head of the answer that makes a connection a WebSocket.
func switching(r *http.Request, g *Gateway, rep *lode.AgentReply, accept string) []byte {
	h := http.Header{}
	for _, p := range rep.Head {
		key := guestName(p.Key)
		if key == "" || key == "Content-Length" || key == "Content-Type" || strings.HasPrefix(key, "Sec-Websocket-") && (key != "Sec-Websocket-Protocol" || !offered(r, p.Value)) {
			continue
		}
		h.Add(key, p.Value)
	}
	h.Set("Upgrade", "websocket")
	h.Set("Connection", "Upgrade")
	h.Set("Sec-Websocket-Accept", accept)
	h.Set("Lode-Invocation", rep.ID)
	node := g.cfg.Node
	if rep.Node != "" {
		node = string(rep.Node)
	}
	if node != "" {
		h.Set("Lode-Node", node)
	}
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = h.Write(&b) // to memory
	b.WriteString("\r\n")
	return b.Bytes()
}

// offered reports whether the client has offered a subprotocol.
func offered(r *http.Request, protocol string) bool {
	for _, v := range r.Header["Sec-Websocket-Protocol"] {
		if slices.ContainsFunc(strings.Split(v, ","), func(s string) bool { return strings.TrimSpace(s) == protocol }) {
			return true
		}
	}
	return false
}

// begin takes the connection out of net/http's hands. The reader has a
// goroutine of its own, for that of the request holds all that it needed.
func (s *socket) begin(w http.ResponseWriter, head []byte) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.g.cfg.Log.Error("a connection cannot become a WebSocket", "err", err)
		s.abandon(err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in.conn = conn
	if n := rw.Reader.Buffered(); n > 0 {
		early, _ := rw.Reader.Peek(n) // they are there
		s.in.early = bytes.Clone(early)
	}
	_ = conn.SetDeadline(time.Time{})
	s.lead = head
	s.kick()
	if s.closing {
		s.giveUpAt(s.closeBy)
	}
	if s.g.sockets.ctx.Err() != nil {
		_ = conn.Close() // cut while it had no connection
	}
	go s.run()
}

// abandon gives up a socket that got no connection. Where the agent may have
// accepted it, it is told.
func (s *socket) abandon(err error) {
	switch lode.KindOf(err) {
	case lode.Deadline, lode.Unavailable, lode.Cancelled, lode.Internal:
	default:
		s.g.sockets.drop(s)
		return
	}
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	go func() {
		defer s.g.sockets.drop(s)
		s.report(ending{event: "close", code: closeLost, reason: "the connection was lost"})
	}()
}
