package bus

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"lode"
)

// A lease is one entry of a table, JSON:
//
//	{"holder": "node-a", "epoch": 7, "ttl": 2000000000, "free": false}
//
// It is renewed by writing it again, so that its revision changes. No clock is
// compared with another: who wants a lease that is held waits until it has
// itself seen the same revision for the whole ttl and a margin, and then takes
// it by compare-and-swap on that revision; from that instant the old holder
// cannot renew. The holder counts its time from before it sent the renewal, by
// a clock that cannot jump. Both clocks stand still while the members of the
// bus change (gate.go): nobody loses a lease because nobody could write.
type leaseRecord struct {
	Holder string        `json:"holder"`
	Epoch  uint64        `json:"epoch"`
	TTL    time.Duration `json:"ttl"`
	Free   bool          `json:"free,omitempty"` // given back
}

const (
	clockRate   = 0.01 // by how much the rates of two clocks may differ
	leaseMargin = 200 * time.Millisecond
)

// Lease is exclusive use of a name, as long as it is Valid. Its epoch is
// higher than that of every earlier holder: what is written with it can fence
// them off.
//
//	held -(renewed in time)-> held -(not renewed in time, or taken)-> lost
//	                               -(Release)-> released
type Lease struct {
	t     *Table
	key   string
	epoch uint64
	ttl   time.Duration
	stop  context.CancelFunc
	// forget takes the lease from the list of what Close ends.
	forget func()
	done   chan struct{} // the renewer has ended
	lost   chan struct{}
	once   sync.Once

	mu    sync.Mutex
	rev   uint64
	until time.Duration // by the clock of the gate
	ended bool          // lost or released: never valid again
}

// Acquire waits until it holds the lease on key in t, or ctx ends. ttl is how
// long others wait when the holder falls silent; it is renewed four times in
// that time. A holder that the record names already gets it at once, unless
// this bus holds it: it is the same node, and its former process is dead, for
// the folder of the bus is locked by this one. The caller ends it with
// Release.
func (t *Table) Acquire(ctx context.Context, key, holder string, ttl time.Duration) (*Lease, error) {
	if ttl < 10*time.Millisecond {
		return nil, lode.Errorf(lode.Invalid, "a lease of %s is too short", ttl)
	}
	var seen uint64         // revision of the present holder's record
	clock := t.b.gate.clock // it stands still while nobody can renew
	var since time.Duration
	for {
		e, ok, err := t.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		var now leaseRecord
		if ok {
			if err := json.Unmarshal(e.Value, &now); err != nil {
				return nil, lode.Errorf(lode.Damaged, "the record of lease %s cannot be read: %w", key, err)
			}
		}
		if e.Rev != seen || since == 0 {
			seen, since = e.Rev, clock()
		}
		wait := time.Duration(float64(now.TTL)*(1+clockRate)) + leaseMargin - (clock() - since)
		mine := now.Holder == holder && !t.b.holds(t.name, key)
		if !ok || now.Free || wait <= 0 || mine {
			l, err := t.take(ctx, key, leaseRecord{Holder: holder, Epoch: now.Epoch + 1, TTL: ttl}, e.Rev)
			if k := lode.KindOf(err); k != lode.Precondition && k != lode.Conflict {
				return l, err
			}
			continue // somebody else was first
		}
		select {
		case <-time.After(min(wait, now.TTL/4)):
		case <-ctx.Done():
			return nil, ctxError(ctx, "wait for lease "+key+", which "+now.Holder+" holds")
		}
	}
}

func (t *Table) take(ctx context.Context, key string, r leaseRecord, rev uint64) (*Lease, error) {
	sent := t.b.gate.clock()
	b, err := json.Marshal(r)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "write lease %s: %w", key, err)
	}
	if rev == 0 { // Create also takes a key that was deleted
		rev, err = t.Create(ctx, key, b)
	} else {
		rev, err = t.Update(ctx, key, b, rev)
	}
	if err != nil {
		return nil, err
	}
	rctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &Lease{t: t, key: key, epoch: r.Epoch, ttl: r.TTL, stop: stop, done: make(chan struct{}), lost: make(chan struct{}), rev: rev}
	l.until = sent + l.span()
	if l.forget, err = t.b.onClose(l.abandon); err != nil {
		stop()
		return nil, err
	}
	t.b.mu.Lock()
	t.b.leases[leaseID{t.name, key}]++
	t.b.mu.Unlock()
	go l.renew(rctx, r)
	return l, nil
}

// leaseID names a lease.
type leaseID struct{ table, key string }

// holds reports whether a lease is held through this bus.
func (b *Bus) holds(table, key string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.leases[leaseID{table, key}] > 0
}

func (l *Lease) span() time.Duration { return time.Duration(float64(l.ttl) * (1 - clockRate)) }

// Epoch is 1 for the first holder and grows with each.
func (l *Lease) Epoch() uint64 { return l.epoch }

// Lost is closed when the lease is not held any more, by whatever cause.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Valid reports whether the lease is held now. What is done after it may come
// too late: only a write that is fenced by the epoch is safe.
func (l *Lease) Valid() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.ended && l.t.b.gate.clock() < l.until
}

func (l *Lease) renew(ctx context.Context, r leaseRecord) {
	defer close(l.done)
	for {
		select {
		case <-time.After(l.ttl / 4):
		case <-ctx.Done():
			return
		}
		l.mu.Lock()
		rev, until := l.rev, l.until
		l.mu.Unlock()
		b, err := json.Marshal(r)
		if err != nil {
			l.lose()
			return
		}
		clock := l.t.b.gate.clock
		sent := clock()
		uctx, cancel := l.t.b.within(ctx, until)
		rev, err = l.t.Update(uctx, l.key, b, rev)
		cancel()
		switch {
		case err == nil:
			l.mu.Lock()
			l.rev, l.until = rev, sent+l.span()
			l.mu.Unlock()
		case ctx.Err() != nil:
			return
		case lode.KindOf(err) == lode.Precondition && l.mine(ctx, r):
		case lode.KindOf(err) == lode.Precondition, clock() >= until:
			l.lose()
			return
		}
	}
}

// mine reports whether the record is still that of this lease: then a renewal
// did come through whose answer was lost. The time is not renewed by it.
func (l *Lease) mine(ctx context.Context, r leaseRecord) bool {
	e, ok, err := l.t.Get(ctx, l.key)
	var now leaseRecord
	if err != nil || !ok || json.Unmarshal(e.Value, &now) != nil || now != r {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rev = e.Rev
	return true
}

func (l *Lease) lose() {
	l.once.Do(func() {
		l.mu.Lock()
		l.ended = true
		l.mu.Unlock()
		l.t.b.mu.Lock()
		id := leaseID{l.t.name, l.key}
		if l.t.b.leases[id]--; l.t.b.leases[id] == 0 {
			delete(l.t.b.leases, id)
		}
		l.t.b.mu.Unlock()
		close(l.lost)
	})
}

// abandon stops renewing; others get the lease when its time is over.
func (l *Lease) abandon() {
	l.stop()
	<-l.done
	l.lose()
}

// Release gives the lease back, so that the next holder need not wait. It may
// be called again, and after the lease was lost.
func (l *Lease) Release(ctx context.Context) error {
	l.mu.Lock()
	ended := l.ended
	l.mu.Unlock()
	l.abandon()
	l.forget()
	if ended {
		return nil
	}
	l.mu.Lock()
	rev := l.rev
	l.mu.Unlock()
	b, err := json.Marshal(leaseRecord{Epoch: l.epoch, Free: true})
	if err != nil {
		return lode.Errorf(lode.Internal, "write lease %s: %w", l.key, err)
	}
	if _, err = l.t.Update(ctx, l.key, b, rev); lode.KindOf(err) == lode.Precondition {
		return nil // somebody else has it already
	}
	return err
}
