package bus

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"lode"
	"lode/bus/fence"
)

// read reads a log without becoming its writer: "open" for openings.
func read(t testing.TB, b *Bus, name string, from, to uint64) (out []string, err error) {
	t.Helper()
	last := uint64(0)
	err = b.ReadLog(t.Context(), name, from, to, func(m Message) error {
		if last != 0 && m.Seq != last+1 {
			t.Fatalf("%d after %d", m.Seq, last)
		}
		last = m.Seq
		if m.Opens {
			out = append(out, "open")
		}
		for _, e := range m.Entries {
			out = append(out, string(e))
		}
		return nil
	})
	if err == nil && last != to {
		t.Fatalf("it ended at %d, not %d", last, to)
	}
	return out, err
}

// TestReadNothing: a copy that has everything up to a position reads on from
// behind it.
func TestReadNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, b *Bus) {
		l := must(b.OpenLog(t.Context(), "nothing"))(t)
		tail := must(l.Commit(t.Context(), []byte("a")))(t)
		for _, from := range []uint64{tail + 1, tail + 7} {
			if err := b.ReadLog(t.Context(), "nothing", from, tail, func(m Message) error { return fmt.Errorf("message %d", m.Seq) }); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestCommit(t *testing.T) {
	everywhere(t, func(t *testing.T, b *Bus) {
		ctx := t.Context()
		l := must(b.OpenLog(ctx, "commit"))(t)
		if l.Opened() != 1 || must(l.Commit(ctx, []byte("a")))(t) != 2 {
			t.Fatal(l.Opened(), l.Tail())
		}
		// This one lands, its answer is lost, and then another writer opens.
		r := l.next
		r.entries = [][]byte{[]byte("b")}
		msg := r.encode()
		must(b.js.Publish(ctx, l.subject, msg))(t)
		by := must(b.OpenLog(ctx, "commit"))(t)
		if by.Opened() != 4 {
			t.Fatal(by.Opened())
		}
		if seq, err := l.Commit(ctx, []byte("b")); err != nil || seq != 3 {
			t.Fatalf("a message that landed before the end was answered by %d, %v", seq, err)
		}
		_, err := l.Commit(ctx, []byte("c"))
		wantKind(t, err, lode.Conflict)
		if errors.Is(err, ErrTrimmed) {
			t.Fatal(err)
		}
		_, err = l.Commit(ctx, []byte("d"))
		wantKind(t, err, lode.Conflict)
		_, err = by.Commit(ctx, make([]byte, MaxAppend+1))
		wantKind(t, err, lode.TooLarge)
		got, err := read(t, b, "commit", 0, by.Opened())
		if err != nil || fmt.Sprint(got) != "[open a b open]" {
			t.Fatal(got, err)
		}
		if got, err = read(t, b, "commit", 3, 4); err != nil || fmt.Sprint(got) != "[b open]" {
			t.Fatal(got, err)
		}
		must(by.Commit(ctx, []byte("e")))(t)
		if err := by.Trim(ctx, 4); err != nil {
			t.Fatal(err)
		}
		_, err = read(t, b, "commit", 2, 4)
		wantKind(t, err, lode.Gone)
		if got, err = read(t, b, "commit", 0, 5); err != nil || fmt.Sprint(got) != "[open e]" {
			t.Fatal(got, err)
		}
		_, err = read(t, b, "no-such", 0, 1)
		wantKind(t, err, lode.NotFound)
	})
}

// TestCommitTrimmed has a writer come back when even what would tell what
// became of its message is gone.
func TestCommitTrimmed(t *testing.T) {
	t.Parallel()
	b, ctx := open(t, t.TempDir()), t.Context()
	old := must(b.OpenLog(ctx, "journal"))(t)
	now := must(b.OpenLog(ctx, "journal"))(t)
	must(now.Commit(ctx, []byte("x")))(t)
	if err := now.Trim(ctx, 3); err != nil {
		t.Fatal(err)
	}
	_, err := old.Commit(ctx, []byte("late"))
	if lode.KindOf(err) != lode.Conflict || !errors.Is(err, ErrTrimmed) {
		t.Fatal(err)
	}
}

// TestCommitWaits has the members of the bus change while a message is out.
func TestCommitWaits(t *testing.T) {
	t.Parallel()
	b, ctx := open(t, t.TempDir()), t.Context()
	l := must(b.OpenLog(ctx, "journal"))(t)
	b.gate.freeze(time.Minute)
	done := make(chan error, 1)
	go func() {
		_, err := l.Commit(ctx, []byte("a"))
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	b.gate.thaw()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// Who gives up leaves the message to the next one.
	b.gate.freeze(time.Minute)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err := l.Commit(short, []byte("b"))
	wantKind(t, err, lode.Unavailable)
	b.gate.thaw()
	if seq := must(l.Commit(ctx, []byte("c")))(t); seq != 4 {
		t.Fatal(seq)
	}
	if got, err := read(t, b, "journal", 0, 4); err != nil || fmt.Sprint(got) != "[open a b c]" {
		t.Fatal(got, err)
	}
	b.gate.freeze(time.Minute)
	go func() {
		_, err := l.Commit(ctx, []byte("d"))
		done <- err
	}()
	b.Close()
	wantKind(t, <-done, lode.Unavailable)
}

// TestCommitInDoubt holds that a full store refuses a message for good only if
// no earlier copy of it may still land.
func TestCommitInDoubt(t *testing.T) {
	l := &Log{w: fence.Writer{N: 1, Tail: 1}}
	full := lode.Errorf(lode.Full, "full")
	if v, _ := l.judge(t.Context(), nil, 0, full); v != fence.Refused {
		t.Fatal(v)
	}
	if v, _ := l.judge(t.Context(), nil, 0, context.DeadlineExceeded); v != fence.Again {
		t.Fatal(v)
	}
	if v, _ := l.judge(t.Context(), nil, 0, full); v != fence.Again {
		t.Fatal(v)
	}
}

func TestReadDamagedLog(t *testing.T) {
	t.Parallel()
	b, ctx := open(t, t.TempDir()), t.Context()
	l := must(b.OpenLog(ctx, "journal"))(t)
	must(l.Commit(ctx, []byte("a")))(t)
	must(b.js.Publish(ctx, l.subject, []byte("foreign")))(t)
	by := must(b.OpenLog(ctx, "journal"))(t)
	if got, err := read(t, b, "journal", 0, 2); err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	_, err := read(t, b, "journal", 0, by.Opened())
	wantKind(t, err, lode.Damaged)
}
