package gateway

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Bad tokens are not dangerous by what they guess, 192 random bits, but by what
// looking them up costs. An address may show maxBad of them in badWindow; then
// its tokens are refused unread until the window is over. Those that were good
// lately, from wherever, are let through: many clients may stand behind one
// address, and one of them must not lock out the others.
const (
	maxBad    = 30
	badWindow = 10 * time.Second
	maxAddrs  = 4096 // remembered at once; beyond it some are forgotten early
	goodSlots = 1024
)

// failures remembers who showed bad tokens. The zero value does not work; its
// memory is bounded.
type failures struct {
	seed  maphash.Seed
	goods [goodSlots]atomic.Uint64 // hashes of good tokens, each in the slot of its hash
	now   func() time.Time
	some  atomic.Bool // there is an address: the way that everybody goes looks no further

	mu    sync.Mutex
	addrs map[netip.Prefix]*strikes
}

// strikes is one address.
type strikes struct {
	since time.Time // when the window began
	n     int
}

func newFailures() *failures {
	return &failures{seed: maphash.MakeSeed(), now: time.Now, addrs: map[netip.Prefix]*strikes{}}
}

// source is who an address belongs to: in IPv6 a whole /64, which is what one
// subscriber has.
func source(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // bits fit
	return p
}

// good remembers a token that was good.
func (f *failures) good(token string) {
	h := maphash.String(f.seed, token)
	if slot := &f.goods[h%goodSlots]; slot.Load() != h {
		slot.Store(h)
	}
}

// bad counts a token that was not, and reports whether it was the last one
// that is looked at for now.
func (f *failures) bad(remote string) bool {
	now, who := f.now(), source(remote)
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.addrs[who]
	if s == nil {
		if len(f.addrs) >= maxAddrs {
			f.makeRoom(now)
		}
		s = &strikes{since: now}
		f.addrs[who] = s
		f.some.Store(true)
	}
	if now.Sub(s.since) >= badWindow {
		s.since, s.n = now, 0
	}
	s.n++
	return s.n == maxBad
}

// makeRoom forgets the addresses whose window is over, and if there are none,
// a quarter of them as they come.
func (f *failures) makeRoom(now time.Time) {
	for who, s := range f.addrs {
		if now.Sub(s.since) >= badWindow {
			delete(f.addrs, who)
		}
	}
	for who := range f.addrs {
		if len(f.addrs) < maxAddrs*3/4 {
			return
		}
		delete(f.addrs, who)
	}
}

// wait is how long tokens from there are not looked at; 0: this one may be.
func (f *failures) wait(remote, token string) time.Duration {
	if !f.some.Load() {
		return 0
	}
	now := f.now()
	f.mu.Lock()
	s := f.addrs[source(remote)]
	var left time.Duration
	if s != nil && s.n >= maxBad {
		left = badWindow - now.Sub(s.since)
	}
	f.mu.Unlock()
	if left <= 0 {
		return 0
	}
	if h := maphash.String(f.seed, token); f.goods[h%goodSlots].Load() == h {
		return 0
	}
	return left
}
