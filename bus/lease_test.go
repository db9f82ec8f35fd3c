package bus

import (
	"context"
	"testing"
	"time"

	"lode"
)

func TestLease(t *testing.T) { everywhere(t, testLease) }

func testLease(t *testing.T, b *Bus) {
	ctx := t.Context()
	tab := must(b.Table(ctx, "leases"))(t)
	first := must(tab.Acquire(ctx, "job/1", "a", time.Second))(t)
	if first.Epoch() != 1 || !first.Valid() {
		t.Fatalf("epoch %d, valid %v", first.Epoch(), first.Valid())
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err := tab.Acquire(short, "job/1", "b", time.Second)
	wantKind(t, err, lode.Deadline)
	if err := first.Release(ctx); err != nil {
		t.Fatal(err)
	}
	<-first.Lost()
	second := must(tab.Acquire(ctx, "job/1", "b", 100*time.Millisecond))(t)
	if second.Epoch() != 2 || first.Valid() {
		t.Fatalf("epoch %d", second.Epoch())
	}
	if err := first.Release(ctx); err != nil { // again, and it is another's by now
		t.Fatal(err)
	}
	if !second.Valid() {
		t.Fatal("the release of an older lease ended the newer one")
	}
	second.abandon() // as if its node had died: somebody else gets it after its time
	third := must(tab.Acquire(ctx, "job/1", "c", time.Second))(t)
	if third.Epoch() != 3 || second.Valid() {
		t.Fatalf("epoch %d", third.Epoch())
	}
}

func TestLeaseTaken(t *testing.T) { everywhere(t, testLeaseTaken) }

func testLeaseTaken(t *testing.T, b *Bus) {
	ctx := t.Context()
	tab := must(b.Table(ctx, "leases"))(t)
	l := must(tab.Acquire(ctx, "k", "a", 100*time.Millisecond))(t)
	for { // take it away by a compare-and-swap, as another node would
		e, _, err := tab.Get(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		if _, err = tab.Update(ctx, "k", []byte(`{"holder":"b","epoch":2,"ttl":1}`), e.Rev); err == nil {
			break
		}
	}
	<-l.Lost()
	if l.Valid() {
		t.Fatal("valid after it was lost")
	}
}

func TestLeaseIsRenewed(t *testing.T) { everywhere(t, testLeaseIsRenewed) }

func testLeaseIsRenewed(t *testing.T, b *Bus) {
	ctx := t.Context()
	tab := must(b.Table(ctx, "leases"))(t)
	l := must(tab.Acquire(ctx, "k", "a", 2*time.Second))(t)
	w := must(tab.Watch(ctx, "k"))(t)
	defer w.Close()
	for renewals := 0; renewals < 3; {
		c := must(w.Next(ctx))(t)
		if c.Op == Set {
			renewals++
		}
	}
	select {
	case <-l.Lost():
		t.Fatal("lost")
	default:
	}
}

// TestLeaseOfTheSame has a node come back after kill -9: it gets at once what
// it held, and not what a part of itself holds.
func TestLeaseOfTheSame(t *testing.T) { everywhere(t, testLeaseOfTheSame) }

func testLeaseOfTheSame(t *testing.T, b *Bus) {
	ctx := t.Context()
	tab := must(b.Table(ctx, "leases"))(t)
	first := must(tab.Acquire(ctx, "k", "a", time.Hour))(t)
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err := tab.Acquire(short, "k", "a", time.Hour)
	wantKind(t, err, lode.Deadline)
	first.abandon() // as kill -9 does
	second := must(tab.Acquire(ctx, "k", "a", time.Hour))(t)
	if second.Epoch() != 2 || !second.Valid() || first.Valid() {
		t.Fatalf("epoch %d", second.Epoch())
	}
	if err := second.Release(ctx); err != nil {
		t.Fatal(err)
	}
}
