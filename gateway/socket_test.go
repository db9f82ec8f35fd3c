package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"lode"
)

// dial opens a WebSocket with a client of another make.
func dial(t *testing.T, base, path string) *websocket.Conn {
	t.Helper()
	c, res, err := websocket.Dial(t.Context(), base+path, &websocket.DialOptions{Subprotocols: []string{"news", "chat"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Subprotocol() != "chat" || res.Header.Get("X-Mine") != "1" || len(res.Header.Get("Lode-Invocation")) != 26 || res.Header.Get("Lode-Node") != "n2" {
		t.Errorf("%q %v", c.Subprotocol(), res.Header)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

func expect(t *testing.T, c *websocket.Conn, want string) {
	t.Helper()
	if _, got, err := c.Read(t.Context()); err != nil || string(got) != want {
		t.Fatalf("got %.100q %v, want %.100q", got, err, want)
	}
}

func expectClose(t *testing.T, c *websocket.Conn, code int, reason string) {
	t.Helper()
	for {
		_, _, err := c.Read(t.Context())
		if err == nil {
			continue
		}
		if e := closeErrorOf(err); int(e.Code) != code || e.Reason != reason {
			t.Fatalf("closed with %v, want %d %q", err, code, reason)
		}
		return
	}
}

func closeErrorOf(err error) websocket.CloseError {
	for e := err; e != nil; {
		if ce, ok := e.(websocket.CloseError); ok {
			return ce
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			break
		}
		e = u.Unwrap()
	}
	return websocket.CloseError{}
}

// waitFor waits until the agent has written something down.
func (o *town) waitFor(t *testing.T, key, want string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		got := o.logged(key)
		if strings.Contains(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s never came:\n%s", want, got)
		}
	}
}

func TestSocketTalk(t *testing.T) {
	o := newTown()
	o.fn.Limits.Body = 4 << 20
	_, base := o.start(t, nil)
	c := dial(t, base, "/agents/cart/room?x")
	c.SetReadLimit(-1)
	expect(t, c, "welcome room")
	for _, n := range []int{0, 1, 5, 125, 126, 255, 256, 257, 65535, 65536, 65537, 4 << 20} {
		text := strings.Repeat("ä", n/2+1)[:n]
		kind := websocket.MessageText
		if n%2 == 1 {
			kind = websocket.MessageBinary
		}
		if err := c.Write(t.Context(), kind, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, b, err := c.Read(t.Context()); err != nil || got != kind || string(b) != text {
			t.Fatalf("%d bytes: %v, %d bytes, %v", n, got, len(b), err)
		}
	}
	go func() {
		for n := range 200 {
			_ = c.Write(context.Background(), websocket.MessageText, fmt.Append(nil, "m", n))
		}
	}()
	for n := range 200 {
		expect(t, c, fmt.Sprint("m", n))
	}
	do(t, "POST", base+"/agents/cart/room/say", "from elsewhere")
	expect(t, c, "from elsewhere")
	pinged := make(chan error)
	go func() { pinged <- c.Ping(context.Background()) }()
	ctx, cancel := context.WithCancel(t.Context())
	read := c.CloseRead(ctx)
	if err := <-pinged; err != nil {
		t.Error(err)
	}
	cancel()
	<-read.Done()

	c = dial(t, base, "/agents/cart/door/path")
	expect(t, c, "welcome door")
	if err := c.Close(websocket.StatusNormalClosure, "done"); err != nil {
		t.Error(err)
	}
	o.waitFor(t, "door", `close 1000 "done" clean=1`)
}

func TestSocketEnds(t *testing.T) {
	o := newTown()
	g, base := o.start(t, nil)
	for _, c := range []struct {
		say, reason, log string
		code             int
	}{
		{"bye", "as you wish", `close 4000 "as you wish" clean=1`, 4000},
		{"crash", "crashed", `close 1011 "crashed" clean=1`, 1011},
	} {
		t.Run(c.say, func(t *testing.T) {
			s := dial(t, base, "/agents/cart/"+c.say)
			expect(t, s, "welcome "+c.say)
			if err := s.Write(t.Context(), websocket.MessageText, []byte(c.say)); err != nil {
				t.Fatal(err)
			}
			expectClose(t, s, c.code, c.reason)
			o.waitFor(t, c.say, c.log)
		})
	}
	t.Run("vanished", func(t *testing.T) {
		s := dial(t, base, "/agents/cart/v")
		_ = s.CloseNow()
		o.waitFor(t, "v", `close 1006 "the connection was lost" clean=0`)
	})
	t.Run("not accepted", func(t *testing.T) {
		_, res, err := websocket.Dial(t.Context(), base+"/agents/cart/n/no", nil)
		if err == nil || res.StatusCode != 418 || res.Header.Get("X-Upgrade") != "websocket" || res.Header.Get("X-Path") != "/no" {
			t.Error(err, res)
		}
	})
	t.Run("unavailable", func(t *testing.T) {
		o.mu.Lock()
		o.refuse = []error{lode.Errorf(lode.Unavailable, "no majority"), lode.Errorf(lode.Overloaded, "full")}
		o.mu.Unlock()
		_, res, err := websocket.Dial(t.Context(), base+"/agents/cart/u", nil)
		if err == nil || res.StatusCode != 503 || res.Header.Get("Lode-Error") != "unavailable" {
			t.Error(err, res)
		}
		o.waitFor(t, "u", "unknown socket: close") // it may have accepted, for all that is known
	})
	gone, err := g.Deliver(t.Context(), []lode.SocketFrame{{Socket: "n1~1", N: 1}, {Socket: "n1~1", N: 2}, {Socket: "n1~2", N: 1}})
	if fmt.Sprint(gone, err) != "[n1~1 n1~2] <nil>" {
		t.Error(gone, err)
	}
}

// TestSocketAgain: an agent that cannot take a message now gets it later, once.
func TestSocketAgain(t *testing.T) {
	o := newTown()
	_, base := o.start(t, nil)
	c := dial(t, base, "/agents/cart/a")
	expect(t, c, "welcome a")
	o.mu.Lock()
	o.refuse = []error{lode.Errorf(lode.Overloaded, "the mailbox is full"), lode.Errorf(lode.Unavailable, "no majority")}
	o.mu.Unlock()
	for _, m := range []string{"one", "two"} {
		if err := c.Write(t.Context(), websocket.MessageText, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, c, "one")
	expect(t, c, "two")
	if got := o.logged("a"); got != "accept websocket\ntext \"one\"\ntext \"two\"" {
		t.Error(got)
	}
}

func TestSocketShutdown(t *testing.T) {
	o := newTown()
	g, base := o.start(t, nil)
	c := dial(t, base, "/agents/cart/a")
	expect(t, c, "welcome a")
	deaf, _ := rawSocket(t, base, "/agents/cart/b")
	o.waitFor(t, "b", "accept")
	read := make(chan bool)
	go func() { defer close(read); expectClose(t, c, 1012, "the node stops") }()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.Shutdown(ctx) }()
	<-read
	o.waitFor(t, "a", `close 1012 "the node stops" clean=1`)
	cancel() // one that does not answer is cut
	if err := <-done; err != nil && err != context.Canceled {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, deaf); err != nil {
		t.Log(err) // reset or ended: both are well
	}
}

// rawSocket speaks the protocol by hand: the handshake is over, and the welcome
// of the agent is not yet read.
func rawSocket(t *testing.T, base, path string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, r := rawClient(t, base, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n"+wsFields+"\r\n")
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || res.Header.Get("Sec-Websocket-Protocol") != "" {
		t.Fatal(res, err)
	}
	return c, r
}

const wsFields = "Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// readFrame reads a frame of the server.
func readFrame(t *testing.T, r io.Reader) (first byte, payload []byte) {
	t.Helper()
	var h [2]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		t.Fatal(err)
	}
	n := int(h[1])
	if n >= 126 {
		b := make([]byte, map[int]int{126: 2, 127: 8}[n])
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		n = 0
		for _, v := range b {
			n = n<<8 | int(v)
		}
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		t.Fatal(err)
	}
	return h[0], payload
}

// clientFrame is a masked frame.
func clientFrame(first byte, payload []byte) []byte {
	b := appendFrame(nil, first&127, payload)
	b[0] = first
	b[1] |= 128
	at := len(b) - len(payload)
	mask := []byte{1, 2, 3, 4}
	b = append(b[:at:at], append(mask, payload...)...)
	for i := range payload {
		b[at+4+i] ^= mask[i%4]
	}
	return b
}

func TestHandshake(t *testing.T) {
	o := newTown()
	_, base := o.start(t, nil)
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"version":     {"GET /agents/cart/a HTTP/1.1\r\nHost: localhost\r\n" + strings.Replace(wsFields, "13", "8", 1) + "\r\n", 400},
		"key":         {"GET /agents/cart/a HTTP/1.1\r\nHost: localhost\r\n" + strings.Replace(wsFields, "dGhl", "", 1) + "\r\n", 400},
		"no key":      {"GET /agents/cart/a HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n", 400},
		"post":        {"POST /agents/cart/a HTTP/1.1\r\nHost: localhost\r\n" + wsFields + "\r\n", 400},
		"body":        {"GET /agents/cart/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n" + wsFields + "\r\nx", 400},
		"other":       {"GET /agents/cart/a HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", 418},
		"no upgrade":  {"GET /agents/cart/a HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n", 418},
		"a method":    {"GET /agents/cart/a/add HTTP/1.1\r\nHost: localhost\r\n" + wsFields + "\r\n", 405},
		"origin":      {"GET /agents/cart/a HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n" + wsFields + "\r\n", 403},
		"no such one": {"GET /agents/car/a HTTP/1.1\r\nHost: localhost\r\n" + wsFields + "\r\n", 404},
	} {
		t.Run(name, func(t *testing.T) {
			_, r := rawClient(t, base, c.request)
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != c.status || c.status == 400 && res.Header.Get("Sec-Websocket-Version") != "13" {
				t.Error(res.StatusCode, res.Header)
			}
		})
	}
}

// TestFrames: what is no proper frame closes the socket with the code that the
// standard asks for, and the agent is told.
func TestFrames(t *testing.T) {
	o := newTown()
	o.fn.Limits.Body = 1000
	_, base := o.start(t, nil)
	long := func(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{128 | opBinary, 255}, n) }
	for name, c := range map[string]struct {
		send []byte
		code int
		log  string
	}{
		"no mask":          {[]byte{128 | opText, 1, 'x'}, 1002, "error 1002"},
		"extension":        {clientFrame(128|64|opText, nil), 1002, "error 1002"},
		"unknown":          {clientFrame(128|3, nil), 1002, "error 1002"},
		"unknown control":  {clientFrame(128|11, nil), 1002, "error 1002"},
		"cut ping":         {clientFrame(opPing, nil), 1002, "error 1002"},
		"long ping":        {clientFrame(128|opPing, make([]byte, 126)), 1002, "error 1002"},
		"continues none":   {clientFrame(128|opMore, nil), 1002, "error 1002"},
		"not continued":    {append(clientFrame(opText, nil), clientFrame(128|opText, nil)...), 1002, "error 1002"},
		"no UTF-8":         {clientFrame(128|opText, []byte{0xff}), 1007, "error 1007"},
		"half a rune":      {append(clientFrame(opText, []byte{0xc3}), clientFrame(128|opMore, nil)...), 1007, "error 1007"},
		"large":            {clientFrame(128|opBinary, make([]byte, 1001)), 1009, "error 1009"},
		"large in parts":   {append(clientFrame(opBinary, make([]byte, 600)), clientFrame(128|opMore, make([]byte, 600))...), 1009, "error 1009"},
		"huge":             {append(long(1<<62), 1, 2, 3, 4), 1009, "error 1009"},
		"longer than ever": {append(long(1<<63), 1, 2, 3, 4), 1002, "error 1002"},
		"half a code":      {clientFrame(128|opClose, []byte{3}), 1002, "error 1002"},
		"unsendable code":  {clientFrame(128|opClose, []byte{3, 0xed}), 1002, "error 1002"},
		"odd reason":       {clientFrame(128|opClose, []byte{3, 0xe8, 0xff}), 1007, "error 1007"},
		"no code":          {clientFrame(128|opClose, nil), 0, `close 1005 "" clean=1`},
		"code":             {clientFrame(128|opClose, []byte{0x0f, 0xa1, 'h', 'i'}), 4001, `close 4001 "hi" clean=1`},
	} {
		t.Run(name, func(t *testing.T) {
			key := strings.ReplaceAll(name, " ", "_")
			conn, r := rawSocket(t, base, "/agents/cart/"+key)
			if _, err := conn.Write(c.send); err != nil {
				t.Fatal(err)
			}
			first, p := readFrame(t, r)
			if first == 128|opText {
				first, p = readFrame(t, r)
			}
			code := 0
			if len(p) >= 2 {
				code = int(binary.BigEndian.Uint16(p))
			}
			if first != 128|opClose || code != c.code {
				t.Errorf("frame %x %q, want close %d", first, p, c.code)
			}
			conn.Close()
			o.waitFor(t, key, c.log)
			if n := strings.Count(o.logged(key), "\n"); n != 1 {
				t.Error(o.logged(key))
			}
		})
	}
}

// TestFragments: a message in many frames and writes, with pings between, and
// the first ones behind the request without waiting for the answer to it.
func TestFragments(t *testing.T) {
	o := newTown()
	_, base := o.start(t, nil)
	message := strings.Repeat("0123456789", 100)
	var b []byte
	for i := 0; i < len(message); i += 100 {
		first := byte(opMore)
		if i == 0 {
			first = opText
		}
		if i+100 >= len(message) {
			first |= 128
		}
		b = append(b, clientFrame(first, []byte(message[i:i+100]))...)
		b = append(b, clientFrame(128|opPing, []byte{byte(i)})...)
	}
	conn, r := rawClient(t, base, "GET /agents/cart/a HTTP/1.1\r\nHost: localhost\r\n"+wsFields+"\r\n"+string(b[:700]))
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	for rest := b[700:]; len(rest) > 0; rest = rest[1:] {
		if _, err := conn.Write(rest[:1]); err != nil {
			t.Fatal(err)
		}
	}
	pongs := 0
	for {
		first, p := readFrame(t, r)
		if first == 128|opPong {
			pongs++
		}
		if first == 128|opText && string(p) == message {
			break
		}
	}
	if pongs == 0 {
		t.Error("no ping was answered")
	}
}

// TestSlowClient: what an agent says to a client that does not read takes
// bounded memory, and holds up nobody.
func TestSlowClient(t *testing.T) {
	o := newTown()
	g, base := o.start(t, nil)
	conn, _ := rawSocket(t, base, "/agents/cart/slow")
	_ = conn.(*net.TCPConn).SetReadBuffer(4096)
	o.waitFor(t, "slow", "accept")
	var id string
	for s := range o.resident("slow").sockets {
		id = s
	}
	data := make([]byte, 64<<10)
	n := uint64(1)
	for ; n < 10_000; n++ {
		gone, err := g.Deliver(t.Context(), []lode.SocketFrame{{Socket: id, N: n + 1, Binary: true, Data: data}})
		if err != nil {
			t.Fatal(err)
		}
		if len(gone) > 0 {
			break
		}
		if s := g.sockets.lookup(id); s != nil {
			s.mu.Lock()
			if s.backlog > maxBacklog+len(data) {
				t.Fatalf("%d bytes wait", s.backlog)
			}
			s.mu.Unlock()
		}
	}
	if n == 10_000 {
		t.Fatal("it was never given up")
	}
	conn.Close()
	o.waitFor(t, "slow", "close 1008")
}

// TestPing: a client that is silent is asked, one that does not answer is lost.
func TestPing(t *testing.T) {
	o := newTown()
	_, base := o.start(t, func(c *Config) { c.PingEvery = 20 * time.Millisecond })
	c := dial(t, base, "/agents/cart/alive")
	expect(t, c, "welcome alive")
	ended := make(chan bool)
	go func() { defer close(ended); _, _, _ = c.Read(context.Background()) }() // answers pings
	_, r := rawSocket(t, base, "/agents/cart/dead")
	o.waitFor(t, "dead", `close 1006 "the client did not answer a ping" clean=0`)
	if first, _ := readFrame(t, r); first != 128|opText {
		t.Errorf("%x", first)
	}
	if first, _ := readFrame(t, r); first != 128|opPing {
		t.Errorf("%x", first)
	}
	select {
	case <-ended:
		t.Error("a client that answers was given up")
	default:
	}
	_ = c.CloseNow()
	<-ended
}

// TestWhileTheAgentWorks: pings are answered and a message waits; one that
// vanishes is noticed although its message is still under way.
func TestWhileTheAgentWorks(t *testing.T) {
	o := newTown()
	o.begun, o.blocked = make(chan bool), make(chan bool)
	_, base := o.start(t, nil)
	conn, r := rawSocket(t, base, "/agents/cart/a")
	readFrame(t, r)
	released := make(chan bool)
	go func() {
		defer close(released)
		do(t, "POST", base+"/agents/cart/a/wait", "")
	}()
	<-o.begun // the agent is at it
	for _, b := range [][]byte{clientFrame(128|opText, []byte("one")), clientFrame(128|opPing, []byte("p"))} {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if first, p := readFrame(t, r); first != 128|opPong || string(p) != "p" {
		t.Errorf("%x %q", first, p)
	}
	if _, err := conn.Write(clientFrame(128|opText, []byte("two"))); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	o.blocked <- true
	<-released
	o.waitFor(t, "a", "close") // unless it was told first, by the frames of two, that the socket is gone
	if got := o.logged("a"); !strings.Contains(got, "text \"one\"\ntext \"two\"\n") || strings.Count(got, "close") != 1 {
		t.Error(got)
	}
}

// TestIdleSockets: what a socket costs that nobody uses.
func TestIdleSockets(t *testing.T) {
	const n, most = 300, 16 << 10
	o := newTown()
	_, base := o.start(t, nil)
	use := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	open := func(i int) {
		_, r := rawSocket(t, base, fmt.Sprint("/agents/cart/", i))
		readFrame(t, r)
	}
	open(0)
	before, running := use(), runtime.NumGoroutine()
	for i := range n {
		open(i)
	}
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > running+n && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	if more := runtime.NumGoroutine() - running; more > n {
		t.Errorf("%d idle sockets have %d goroutines", n, more)
	}
	each := (use() - before) / n
	t.Logf("%d bytes a socket, client and agent included", each)
	if each > most {
		t.Errorf("an idle socket costs %d bytes; at most %d", each, most)
	}
}

// pieces is a connection that gives bytes in pieces and takes none.
type pieces struct {
	net.Conn
	r    *bytes.Reader
	step int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.step)]) }

// quietOwner notes control frames.
type quietOwner struct{ controls int }

func (q *quietOwner) arm(time.Duration) {}
func (q *quietOwner) idle() error       { return nil }
func (q *quietOwner) control(op byte, p []byte) error {
	q.controls++
	if len(p) > maxControl || op < opClose {
		return fmt.Errorf("control frame %d of %d bytes", op, len(p))
	}
	return nil
}

func FuzzInbox(f *testing.F) {
	f.Add(clientFrame(128|opText, []byte("hi")), 1)
	f.Add(append(clientFrame(opBinary, make([]byte, 300)), clientFrame(128|opMore, []byte("x"))...), 7)
	f.Add(clientFrame(128|opPing, []byte("p")), 100)
	f.Add([]byte{130, 255, 127, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3, 4}, 3)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		const limit = 1000
		q := &quietOwner{}
		in := inbox{conn: &pieces{r: bytes.NewReader(b), step: max(1, step)}, owner: q, limit: limit, early: b[:len(b)/3]}
		in.conn.(*pieces).r.Seek(int64(len(b)/3), io.SeekStart)
		for {
			op, body, err := in.message()
			if err != nil {
				return
			}
			if len(body) > limit || op != opText && op != opBinary {
				t.Fatalf("message %d of %d bytes", op, len(body))
			}
		}
	})
}

// FuzzMessage: what a client says in any number of frames is read back.
func FuzzMessage(f *testing.F) {
	f.Add([]byte("hello, world"), 3, 5)
	f.Add(make([]byte, 700), 300, 100)
	f.Fuzz(func(t *testing.T, body []byte, part, step int) {
		part, step = max(1, part), max(1, step)
		if len(body)/part > 100 || len(body)/step > 1000 {
			return
		}
		var b []byte
		first, rest := byte(opBinary), body
		for len(rest) > part {
			b = append(b, clientFrame(first, rest[:part])...)
			b = append(b, clientFrame(128|opPong, nil)...)
			first, rest = opMore, rest[part:]
		}
		b = append(b, clientFrame(first|128, rest)...)
		q := &quietOwner{}
		in := inbox{conn: &pieces{r: bytes.NewReader(b), step: step}, owner: q, limit: int64(len(body))}
		op, got, err := in.message()
		if err != nil || op != opBinary || !bytes.Equal(got, body) {
			t.Fatalf("%d bytes are %d of kind %d, %v", len(body), len(got), op, err)
		}
		if _, _, err := in.message(); err != io.EOF {
			t.Fatalf("then comes %v", err)
		}
	})
}

func FuzzClose(f *testing.F) {
	f.Add(1000, "done")
	f.Add(4000, strings.Repeat("ä", 100))
	f.Fuzz(func(t *testing.T, code int, reason string) {
		p := closePayload(code, reason)
		if len(p) > maxControl {
			t.Fatalf("%d bytes", len(p))
		}
		got, why, err := parseClose(p)
		if err != nil || !strings.HasPrefix(reason, why) || sendable(code) && got != code || !sendable(code) && got != closeNone {
			t.Fatalf("%d %q is %d %q, %v", code, reason, got, why, err)
		}
	})
}
