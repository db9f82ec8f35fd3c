package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The tests of this file hold down what the server does with conditions and
// repeated messages, with one copy and with three. Log and Table rely on it; a
// new version of the server that answers otherwise fails here and not in the
// field.

type contract struct {
	t     *testing.T
	js    jetstream.JetStream
	st    jetstream.Stream
	three bool // copies
}

// newContract has a stream with the subjects c.own, c.lease and c.other.
func newContract(t *testing.T, b *Bus) *contract {
	prefix := fmt.Sprintf("C%d", streams.Add(1))
	st := must(b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: prefix, Subjects: []string{"c.>"}, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardNew, DenyDelete: true, Duplicates: 2 * time.Minute, Replicas: b.replicas()}))(t)
	t.Cleanup(func() { b.js.DeleteStream(context.Background(), prefix) })
	return &contract{t, b.js, st, b.replicas() > 1}
}

// streams counts them: each has a name of its own.
var streams atomic.Int64

// blind wants a refusal that does not say what the last sequence is.
func (c *contract) blind(f jetstream.PubAckFuture, code jetstream.ErrorCode) {
	c.t.Helper()
	_, err := c.wait(f)
	if api, is := errors.AsType[*jetstream.APIError](err); !is || api.ErrorCode != code {
		c.t.Fatalf("want %d, got %v", code, err)
	}
}

func msg(subject, body string, headers ...string) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Data = []byte(body)
	for i := 0; i+1 < len(headers); i += 2 {
		m.Header[headers[i]] = append(m.Header[headers[i]], headers[i+1])
	}
	return m
}

func num(n uint64) string { return strconv.FormatUint(n, 10) }

const (
	expectAll    = "Nats-Expected-Last-Sequence"
	expectOwn    = "Nats-Expected-Last-Subject-Sequence"
	expectOf     = "Nats-Expected-Last-Subject-Sequence-Subject"
	msgID        = "Nats-Msg-Id"
	inFlightWait = 10 * time.Second
)

// ok publishes and returns the sequence.
func (c *contract) ok(m *nats.Msg) uint64 {
	c.t.Helper()
	ack, err := c.js.PublishMsg(c.t.Context(), m)
	if err != nil {
		c.t.Fatal(err)
	}
	if ack.Duplicate {
		c.t.Fatalf("%s is a duplicate", m.Data)
	}
	return ack.Sequence
}

// refused publishes and wants 10071 that names the true last sequence.
func (c *contract) refused(m *nats.Msg, last uint64) {
	c.t.Helper()
	_, err := c.js.PublishMsg(c.t.Context(), m)
	wantWrongLast(c.t, err, last)
}

func wantWrongLast(t *testing.T, err error, last uint64) {
	t.Helper()
	api, is := errors.AsType[*jetstream.APIError](err)
	if !is || api.ErrorCode != codeWrongLast {
		t.Fatalf("want 10071, got %v", err)
	}
	if n, is := lastSequence(err); !is || n != last {
		t.Fatalf("want the last sequence %d in %q", last, api.Description)
	}
}

// async sends without waiting.
func (c *contract) async(m *nats.Msg) jetstream.PubAckFuture {
	c.t.Helper()
	f, err := c.js.PublishMsgAsync(m)
	if err != nil {
		c.t.Fatal(err)
	}
	return f
}

func (c *contract) wait(f jetstream.PubAckFuture) (*jetstream.PubAck, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), inFlightWait)
	defer cancel()
	select {
	case ack := <-f.Ok():
		return ack, nil
	case err := <-f.Err():
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *contract) last() uint64 {
	c.t.Helper()
	return must(c.st.Info(c.t.Context()))(c.t).State.LastSeq
}

func TestContract(t *testing.T) {
	t.Parallel()
	t.Run("one", func(t *testing.T) { testContract(t, open(t, t.TempDir())) })
	t.Run("three", func(t *testing.T) {
		t.Parallel()
		_, a, _, _ := three(t)
		testContract(t, a)
	})
}

func testContract(t *testing.T, b *Bus) {
	// A server whose last stream goes removes the directory of streams when it
	// likes, and so may take it from under the next one.
	must(b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "KEPT", Subjects: []string{"kept"}, Storage: jetstream.FileStorage}))(t)
	t.Run("two subject conditions are not possible", func(t *testing.T) {
		c := newContract(t, b)
		lease := c.ok(msg("c.lease", "l"))
		own := c.ok(msg("c.own", "1"))
		// With a subject of its own the condition is about that one only.
		c.ok(msg("c.own", "2", expectOwn, num(lease), expectOf, "c.lease"))
		// A second pair is ignored: this one names a wrong tail and is taken.
		c.ok(msg("c.own", "3", expectOwn, num(lease), expectOf, "c.lease", expectOwn, num(own+77), expectOf, "c.own"))
	})
	t.Run("a subject condition and one on the whole are both checked", func(t *testing.T) {
		c := newContract(t, b)
		lease := c.ok(msg("c.lease", "l"))
		tail := c.ok(msg("c.own", "1"))
		c.refused(msg("c.own", "2", expectAll, num(tail+1), expectOwn, num(lease), expectOf, "c.lease"), tail)
		c.refused(msg("c.own", "2", expectAll, num(tail), expectOwn, num(lease+5), expectOf, "c.lease"), lease)
		c.ok(msg("c.own", "2", expectAll, num(tail), expectOwn, num(lease), expectOf, "c.lease"))
	})
	t.Run("several in flight with a subject condition", func(t *testing.T) {
		c := newContract(t, b)
		tail := c.ok(msg("c.own", "0"))
		var fs []jetstream.PubAckFuture
		for i := range uint64(8) {
			fs = append(fs, c.async(msg("c.own", "x", expectOwn, num(tail+i))))
		}
		if c.three {
			// The second and all later ones are refused until the first is applied.
			if _, err := c.wait(fs[0]); err != nil {
				t.Fatal(err)
			}
			blind := 0
			for _, f := range fs[1:] {
				_, err := c.wait(f)
				if api, is := errors.AsType[*jetstream.APIError](err); is && api.ErrorCode == codeWrongLastBlind {
					blind++
				}
			}
			if blind == 0 {
				t.Fatal("none was refused: the server has learned to take them")
			}
			return
		}
		for i, f := range fs {
			if ack, err := c.wait(f); err != nil || ack.Sequence != tail+uint64(i)+1 {
				t.Fatal(i, ack, err)
			}
		}
		// A neighbour's message takes a sequence: the prediction is wrong.
		tail = c.last()
		f1 := c.async(msg("c.other", "n"))
		f2 := c.async(msg("c.own", "y", expectOwn, num(tail)))
		f3 := c.async(msg("c.own", "z", expectOwn, num(tail+1)))
		if _, err := c.wait(f1); err != nil {
			t.Fatal(err)
		}
		if _, err := c.wait(f2); err != nil {
			t.Fatal(err)
		}
		_, err := c.wait(f3)
		wantWrongLast(t, err, tail+2)
	})
	t.Run("several in flight with a condition on the whole", func(t *testing.T) {
		c := newContract(t, b)
		tail := c.ok(msg("c.own", "0"))
		var fs []jetstream.PubAckFuture
		for i := range uint64(8) {
			fs = append(fs, c.async(msg("c.own", "x", expectAll, num(tail+i))))
		}
		for i, f := range fs {
			if ack, err := c.wait(f); err != nil || ack.Sequence != tail+uint64(i)+1 {
				t.Fatal(i, ack, err)
			}
		}
		// After one refusal all later ones are refused.
		tail = c.last()
		fs = nil
		for i := range uint64(4) {
			fs = append(fs, c.async(msg("c.own", "y", expectAll, num(tail+i+1))))
		}
		for _, f := range fs {
			_, err := c.wait(f)
			wantWrongLast(t, err, tail)
		}
	})
	t.Run("a lease renewed while a publish fenced on it is in flight", func(t *testing.T) {
		c := newContract(t, b)
		lease := c.ok(msg("c.lease", "l"))
		f1 := c.async(msg("c.own", "1", expectOwn, num(lease), expectOf, "c.lease"))
		f2 := c.async(msg("c.lease", "l2", expectOwn, num(lease)))
		if _, err := c.wait(f1); err != nil {
			t.Fatal(err)
		}
		if c.three {
			c.blind(f2, codeWrongLastBlind)
			return
		}
		ack, err := c.wait(f2)
		if err != nil {
			t.Fatal(err)
		}
		c.refused(msg("c.own", "2", expectOwn, num(lease), expectOf, "c.lease"), ack.Sequence)
	})
	t.Run("the same bytes again", func(t *testing.T) {
		c := newContract(t, b)
		tail := c.ok(msg("c.own", "0"))
		same := func() *nats.Msg { return msg("c.own", "1", expectAll, num(tail), msgID, "inc/1") }
		f1, f2 := c.async(same()), c.async(same())
		if _, err := c.wait(f1); err != nil {
			t.Fatal(err)
		}
		if c.three {
			c.blind(f2, codeDuplicate) // while the first was in flight
			ack, err := c.js.PublishMsg(t.Context(), same())
			if err != nil || !ack.Duplicate || ack.Sequence != tail+1 {
				t.Fatal(ack, err)
			}
			return
		}
		_, err := c.wait(f2) // while the first was in flight
		wantWrongLast(t, err, tail+1)
		c.refused(same(), tail+1) // after it has landed: the condition is checked first
	})
	t.Run("the same id on another subject", func(t *testing.T) {
		c := newContract(t, b)
		first := c.ok(msg("c.own", "1", msgID, "inc/1"))
		ack, err := c.js.PublishMsg(t.Context(), msg("c.other", "lost", msgID, "inc/1"))
		if err != nil || !ack.Duplicate || ack.Sequence != first || c.last() != first {
			t.Fatal(ack, err, c.last())
		}
	})
	t.Run("the log settles what it does not know", func(t *testing.T) {
		l := must(b.OpenLog(t.Context(), "j"))(t)
		// The answer of this append is lost: it has landed, the writer does not know.
		r := l.next
		r.entries = [][]byte{[]byte("a")}
		l.unknown = r.encode()
		if _, err := b.js.Publish(t.Context(), "log.j", l.unknown); err != nil {
			t.Fatal(err)
		}
		seq := must(l.Append(t.Context(), []byte("b")))(t)
		if seq != 3 || l.Tail() != 3 {
			t.Fatalf("position %d", seq)
		}
		// This one never landed.
		r = l.next
		r.entries = [][]byte{[]byte("c")}
		l.unknown = r.encode()
		must(l.Append(t.Context(), []byte("d")))(t)
		got, _ := contents(t, must(b.OpenLog(t.Context(), "j"))(t))
		if fmt.Sprint(got) != "[a b c d]" {
			t.Fatal(got)
		}
	})
}
