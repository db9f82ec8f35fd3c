package member

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
)

// TestGarbage sends the peer port what does not belong there. Each is refused,
// counted and logged, and the port goes on.
func TestGarbage(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	foreign := newCluster(t).first("b")
	patient := a.ln
	hasty := func() {
		a.joins.cfg.Request = 200 * time.Millisecond
		a.listen(ListenConfig{Handshake: 200 * time.Millisecond})
	}
	dial := func(t *testing.T) net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", a.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	shake := func(cfg *tls.Config) func(*testing.T) {
		return func(t *testing.T) {
			cfg.InsecureSkipVerify, cfg.VerifyConnection = true, nil
			conn := tls.Client(dial(t), cfg)
			if err := conn.Handshake(); err == nil {
				if err := readGreeting(conn); err == nil {
					t.Error("let in")
				}
			}
		}
	}
	with := func(cfg *tls.Config, f func(*tls.Config)) *tls.Config { f(cfg); return cfg }
	for _, tt := range []struct {
		name string
		do   func(*testing.T)
		why  string
	}{
		{"plain HTTP", func(t *testing.T) {
			conn := dial(t)
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n"+strings.Repeat("X-Long: y\r\n", 500)+"\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || resp.StatusCode != 400 {
				t.Fatal(resp, err)
			}
			if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "The gateway is one port below") {
				t.Fatal(string(body), err)
			}
		}, WhyGarbage},
		{"garbage", func(t *testing.T) {
			conn := dial(t)
			conn.Write([]byte(strings.Repeat("\x00\xff", 200)))
			io.Copy(io.Discard, conn)
		}, WhyGarbage},
		{"gone at once", func(t *testing.T) { dial(t).Close() }, WhyLeft},
		{"no protocol", shake(&tls.Config{}), WhyProtocol},
		{"foreign protocol", shake(&tls.Config{NextProtos: []string{"h2"}}), WhyProtocol},
		{"join and link", shake(&tls.Config{NextProtos: []string{join, Link}}), WhyNoCertificate},
		{"old TLS", shake(&tls.Config{NextProtos: []string{Link}, MaxVersion: tls.VersionTLS12}), WhyTLS},
		{"no certificate", shake(&tls.Config{NextProtos: []string{Link}}), WhyNoCertificate},
		{"another CA", shake(foreign.id.ClientTLS("a", Link, nil)), WhyWrongCA},
		{"another CA, true name of it", shake(with(foreign.id.ClientTLS("a", Bus, nil), func(cfg *tls.Config) {
			chain := foreign.id.now().chain
			chain.Certificate = append(chain.Certificate[:1:1], b.id.now().ca.Raw)
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &chain, nil }
		})), WhyWrongCA},
		{"join garbage", func(t *testing.T) {
			conn := tls.Client(dial(t), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{join}})
			conn.Write([]byte("Gxxxxxxxx"))
			_, err := readAnswer(conn)
			conn.Close()
			if lode.KindOf(err) != lode.Invalid {
				t.Error(err)
			}
		}, WhyJoin},
		{"join too long", func(t *testing.T) {
			conn := tls.Client(dial(t), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{join}})
			conn.Write([]byte{msgRequest, 0xff, 0xff, 0xff, 0xff})
			_, err := readAnswer(conn)
			conn.Close()
			if lode.KindOf(err) != lode.Invalid {
				t.Error(err)
			}
		}, WhyJoin},
		{"join of another version", func(t *testing.T) {
			conn := tls.Client(dial(t), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{join}})
			writeMessage(conn, msgRequest, Request{Version: 2})
			_, err := readAnswer(conn)
			conn.Close()
			wantError(t, err, lode.Precondition, "has version 2, and this node understands 1")
		}, WhyJoin},
		{"silence", func(t *testing.T) { io.Copy(io.Discard, dial(t)) }, WhyTimeout},
		{"half a hello", func(t *testing.T) {
			conn := dial(t)
			conn.Write([]byte{22, 3, 1, 2, 0, 1})
			io.Copy(io.Discard, conn)
		}, WhyTimeout},
		{"join silence", func(t *testing.T) {
			conn := tls.Client(dial(t), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{join}})
			conn.Write([]byte{msgRequest, 0, 0, 1, 0, '{'})
			_, err := readAnswer(conn)
			conn.Close()
			wantError(t, err, lode.Deadline, "did not arrive in time")
		}, WhyJoin},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "silence" { // from here on the port waits for little time
				hasty()
			}
			before := a.ln.Refused()[tt.why]
			tt.do(t)
			eventually(t, "counted as "+tt.why, func() bool { return a.ln.Refused()[tt.why] > before })
			eventually(t, "logged", func() bool { return a.logs.has("why="+tt.why) && a.logs.has(words(tt.why)) })
		})
	}
	for _, ln := range []*Listener{patient, a.ln} {
		eventually(t, "all are gone", func() bool {
			ln.mu.Lock()
			defer ln.mu.Unlock()
			return len(ln.conns) == 0 && ln.strangers == 0 && len(ln.byAddr) == 0
		})
	}
	conn, err := b.members.DialAddr(t.Context(), Link, "a", patient.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// TestTooManyStrangers holds the bound, does not count those who have proved
// themselves, and lets others in when there is room.
func TestTooManyStrangers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	a.ln.Close()
	a.listen(ListenConfig{Strangers: 16}) // 4 of one address
	var known []net.Conn
	for range 6 {
		conn, err := b.members.DialAddr(t.Context(), Link, "a", a.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		known = append(known, conn)
	}
	var strangers []net.Conn
	for range 4 {
		conn, err := net.Dial("tcp", a.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		strangers = append(strangers, conn)
	}
	eventually(t, "they are in", func() bool { a.ln.mu.Lock(); defer a.ln.mu.Unlock(); return a.ln.strangers == 4 })
	if _, err := b.members.DialAddr(t.Context(), Link, "a", a.addr); lode.KindOf(err) != lode.Unavailable {
		t.Fatal(err)
	}
	if a.ln.Refused()[WhyTooMany] != 1 {
		t.Fatal(a.ln.Refused())
	}
	strangers[0].Close()
	eventually(t, "there is room again", func() bool {
		conn, err := b.members.DialAddr(t.Context(), Link, "a", a.addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	for _, conn := range known {
		if b, err := io.ReadAll(io.LimitReader(conn, 7)); err != nil || string(b) != "a to b\n" {
			t.Fatal(string(b), err)
		}
	}
}

// TestWrongName reaches a node of the cluster that is another than was meant.
func TestWrongName(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	_, err := a.members.DialAddr(t.Context(), Link, "c", b.addr)
	wantError(t, err, lode.Denied, "is not node c")
	foreign := newCluster(t).first("b")
	_, err = a.members.DialAddr(t.Context(), Link, "b", foreign.addr)
	wantError(t, err, lode.Denied, "is of another cluster")
	_, err = a.members.DialAddr(t.Context(), Link, "b", serve(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }))
	wantError(t, err, lode.Misdirected, "does not speak TLS")
	_, err = a.members.DialAddr(t.Context(), Link, "b", closedPort(t))
	wantError(t, err, lode.Unavailable, "node b does not answer at 127.0.0.1:")
	_, err = a.members.DialAddr(t.Context(), "lode-new/9", "b", b.addr)
	wantError(t, err, lode.Precondition, "version is too different")
	_, err = a.members.DialAddr(t.Context(), Link, "b", "")
	wantError(t, err, lode.Unavailable, "has not said where it listens")
	_, err = a.talk(Link, "bb")
	wantError(t, err, lode.NotFound, "did you mean b?")
}

// TestDialEnds gives up on one that takes connections and says nothing.
func TestDialEnds(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	quit := make(chan struct{})
	mute := serve(t, func(net.Conn) { <-quit })
	defer close(quit)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if conn, err := a.members.DialAddr(ctx, Link, "b", mute); err == nil {
		conn.Close()
		t.Fatal("connected to nobody")
	}
	ctx, cancel = context.WithCancel(t.Context())
	conn, err := a.members.DialAddr(ctx, Link, "b", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel() // the connection is the caller's now
	io.WriteString(conn, "ping")
	if got, err := io.ReadAll(io.LimitReader(conn, 11)); err != nil || string(got) != "b to a\nping" {
		t.Fatal(string(got), err)
	}
}

// TestListenerClose ends handlers and refuses what comes after.
func TestListenerClose(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	conn, err := b.members.Dialer(Bus)(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stranger, err := net.Dial("tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { a.ln.Close() })
	}
	wg.Wait()
	io.Copy(io.Discard, conn)
	io.Copy(io.Discard, stranger)
	if _, err := b.talk(Link, "a"); lode.KindOf(err) != lode.Unavailable {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), ListenConfig{Addr: b.addr, Identity: b.id, Members: b.members}); lode.KindOf(err) != lode.Unavailable {
		t.Fatal(err)
	}
}

// TestNoHandler says that a node is not ready, and takes no joiners.
func TestNoHandler(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	ln, err := Listen(t.Context(), ListenConfig{Addr: "127.0.0.1:0", Identity: a.id, Members: a.members, Logger: a.logger()})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = b.members.DialAddr(t.Context(), Bus, "a", ln.Addr().String())
	wantError(t, err, lode.Unavailable, "node a is not ready for that yet")
	o := a.options("x", a.token(1, time.Hour))
	o.Addr = ln.Addr().String()
	_, err = Join(t.Context(), o)
	wantError(t, err, lode.Unavailable, "takes no joiners")
}
