package bus

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"testing"
	"time"
)

// FuzzHandle has another node say anything: it is answered or refused, and
// nothing changes that the layout says.
func FuzzHandle(f *testing.F) {
	w := newWorld(f)
	b := w.up("a", nil)
	l := b.Layout()
	for _, op := range []string{"layout", "state", "health", "prepare", "freeze", "hold", "cut", "sync", "firm", "thaw", "switch", "x"} {
		for _, about := range []Layout{{}, l, {Cluster: l.Cluster, Generation: 2}, {Cluster: "other", Generation: 9, Members: l.Members}} {
			msg, err := json.Marshal(question{Op: op, Layout: about})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(msg)
		}
	}
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		var q question
		// A layout of this very cluster is believed: it comes from a member.
		if json.Unmarshal(msg, &q) == nil && q.Layout.Cluster == l.Cluster && q.Layout.check() == nil && q.Layout.Generation > l.Generation {
			t.Skip()
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		out, err := b.Handle(ctx, "b", msg)
		if err == nil && !json.Valid(out) {
			t.Fatalf("%q", out)
		}
		if now := b.Layout(); now.Generation != l.Generation || now.Cluster != l.Cluster || len(now.Members) != 1 {
			t.Fatalf("%+v", now)
		}
	})
}

// FuzzServeClient has another node begin a connection with anything: it ends,
// and the bus goes on.
func FuzzServeClient(f *testing.F) {
	w := newWorld(f)
	b := w.up("a", nil)
	f.Add([]byte("LBC1\x00\x00\x00\x00\x00\x00\x00\x01\x01b"))
	f.Add([]byte("LBC1\x00\x00\x00\x00\x00\x00\x00\x02\x01b"))
	f.Add([]byte("LBC1\x00\x00\x00\x00\x00\x00\x00\x01\x01bCONNECT {}\r\nPING\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, head []byte) {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); b.ServeClient(far) }()
		go io.Copy(io.Discard, near)
		near.SetWriteDeadline(time.Now().Add(time.Second))
		near.Write(head)
		near.Close()
		<-done
		if !b.nc.IsConnected() {
			t.Fatal("the bus lost its own connection")
		}
	})
}

// FuzzRoutePreamble reads what a member's connection begins with.
func FuzzRoutePreamble(f *testing.F) {
	f.Add([]byte("LBR1\x00\x00\x00\x00\x00\x00\x00\x02\x01b"))
	f.Add([]byte("LBR1\x00\x00\x00\x00\x00\x00\x00\x02\xffb"))
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		go func() { near.Write(b); near.Close() }()
		defer near.Close()
		generation, from, err := readPreamble(far, routeMagic)
		if err != nil {
			return
		}
		if want := preamble(routeMagic, generation, from); string(b[:len(want)]) != string(want) {
			t.Fatalf("%q is not %q", b, want)
		}
	})
}
