package link

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"
)

// seeds are one frame of each kind.
func seeds() [][]byte {
	r := &Request{Method: "echo", Head: []byte("head")}
	return [][]byte{
		appendHello(nil, hello{1, 1, 5, 1, "x", "b"}),
		appendBeat(nil, 1, 12345, []byte("load")), appendEcho(nil, 1, 12345), appendHeader(nil, 0, kindAck, 0, 0), appendFrame(nil, kindBye, byeClosing, 0, []byte("bye")),
		appendCall(nil, 1, flagStream|flagNotes, time.Second, r, []byte("body")), appendCall(nil, 2, 0, 0, r, nil),
		appendFrame(nil, kindBody, 0, 1, []byte("more")), appendHeader(nil, 0, kindBodyEnd, 0, 1), appendFrame(nil, kindNoteReply, 0, 1, []byte("re")), appendHeader(nil, 0, kindCancel, 0, 1), appendCredit(nil, kindAnswerCredit, 1, 100),
		appendReply(nil, 1, []byte("h"), []byte("b")), appendFrame(nil, kindReply, flagError|flagRefused, 1, []byte(`{"kind":"overloaded"}`)),
		appendFrame(nil, kindAnswerHead, 0, 1, []byte("h")), appendFrame(nil, kindAnswer, 0, 1, []byte("a")), appendHeader(nil, 0, kindAnswerEnd, 0, 1), appendFrame(nil, kindNote, 0, 1, []byte("n")), appendCredit(nil, kindBodyCredit, 1, 100),
	}
}

// FuzzFrame: no bytes make a decoder panic, and what it accepts it writes back
// the same.
func FuzzFrame(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		if !bytes.Equal(appendHeader(nil, h.size, h.kind, h.flags, h.id), b[:headerSize]) {
			t.Fatalf("the header %x is read as %+v", b[:headerSize], h)
		}
		p := b[headerSize:]
		if len(p) > limit[h.kind] {
			return
		}
		switch h.kind {
		case kindCall:
			if c, err := parseCall(p); err == nil {
				r := &Request{Method: string(c.method), Head: c.head}
				if again := appendCall(nil, h.id, h.flags, c.left, r, c.body); !bytes.Equal(again[headerSize:], p) {
					t.Fatalf("a call changed: %x, %x", p, again)
				}
			}
		case kindReply:
			if head, body, err := parseReply(p); err == nil {
				if again := appendReply(nil, h.id, head, body); !bytes.Equal(again[headerSize:], p) {
					t.Fatalf("a reply changed: %x, %x", p, again)
				}
			}
			parseError(p)
		case kindHello:
			if got, err := parseHello(p); err == nil {
				if again := appendHello(nil, got); !bytes.HasPrefix(p, again[headerSize:]) {
					t.Fatalf("a hello changed: %x, %x", p, again)
				}
			}
		case kindBeat, kindEcho:
			if wall, payload, err := parseBeat(p); err == nil {
				if again := appendBeat(nil, h.id, wall, payload); !bytes.Equal(again[headerSize:], p) {
					t.Fatalf("a heartbeat changed: %x, %x", p, again)
				}
			}
		case kindBodyCredit, kindAnswerCredit:
			parseCredit(p)
		}
	})
}

// FuzzConn feeds a whole connection, from its hello on: it ends in order, and
// nothing of it stays.
func FuzzConn(f *testing.F) {
	var all []byte
	for i, s := range seeds() {
		if i > 0 {
			f.Add(s)
		}
		all = append(all, s...)
	}
	f.Add(all)
	h := map[string]Handler{"echo": func(ctx context.Context, in *Incoming) error {
		in.Note([]byte("n"))
		if in.Stream != nil {
			in.Begin(in.Head)
			_, err := io.Copy(in, in.Whole())
			return err
		}
		return in.Reply(in.Head, in.Body)
	}}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := New(Config{Self: "b", Handle: h, Logger: slog.New(slog.DiscardHandler)})
		mine, theirs := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			l.Serve(theirs, "x")
		}()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			io.Copy(io.Discard, mine)
		}()
		mine.Write(appendHello(nil, hello{1, 1, 77, 1, "x", "b"}))
		// A call of ours is open, for answers to be fed to it.
		ctx, cancel := context.WithCancel(t.Context())
		called := make(chan struct{})
		go func() {
			defer close(called)
			l.Wait(ctx, "x")
			l.Call(ctx, "x", &Request{Method: "m", Note: func(b []byte) []byte { return b }, Body: make([]byte, MaxBody+10)}, &Bytes{})
		}()
		l.Wait(ctx, "x")
		mine.Write(b)
		mine.Close()
		<-served
		<-drained
		cancel()
		<-called
		l.Close()
		if p := l.peer("x"); p.busy() || p.count() != 0 {
			t.Error("something is left of the connection")
		}
	})
}
