package invoke

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/placement"
)

// What a node broadcasts of itself, version 1, little endian:
//
//	0   u8   version, 1
//	1   u8   flags: 1 = it drains
//	2   u16  slots: invocations that compute at once
//	4   u32  queue: invocations that compute or wait for a slot
//	8   u64  epoch: grows with every report of a process, and over its restarts
//	16  u64  mean: nanoseconds of a slot that an invocation takes, of its mix
//	24  u64  memory: free bytes; 0 = not told
//	32  u16  n: revisions that follow, at most 256, those used last
//	34  n times 13 bytes:
//	    u64  the revision: see revHash
//	    u32  what one run takes there, in microseconds; 0 = not known lately
//	    u8   how near its code is: placement.Code
//
// A reader passes over bytes that come after.
const (
	loadVersion  = 1
	loadHead     = 34
	loadRev      = 13
	loadRevsMost = 256
	loadDraining = 1
)

// NodeLoad is what a node broadcast of itself.
type NodeLoad struct {
	placement.Load
	Draining bool
	revs     []revLoad // by hash
}

type revLoad struct {
	hash uint64
	run  float64 // seconds; 0: not known
	code placement.Code
}

// rev is what was told of a revision: how near its code is, and what a run
// takes (seconds; 0: not known).
func (l *NodeLoad) rev(hash uint64) (placement.Code, float64) {
	i, ok := slices.BinarySearchFunc(l.revs, hash, func(r revLoad, h uint64) int { return cmp.Compare(r.hash, h) })
	if !ok {
		return placement.Absent, 0
	}
	return l.revs[i].code, l.revs[i].run
}

// ParseLoad reads what LoadReport of another node wrote. The error is Invalid.
func ParseLoad(b []byte) (*NodeLoad, error) {
	if len(b) < loadHead || b[0] != loadVersion {
		return nil, lode.Errorf(lode.Invalid, "a report of %d bytes is none that this version reads", len(b))
	}
	le := binary.LittleEndian
	n := int(le.Uint16(b[32:]))
	if n > loadRevsMost || len(b) < loadHead+n*loadRev {
		return nil, lode.Errorf(lode.Invalid, "a report of %d bytes cannot hold %d revisions", len(b), n)
	}
	l := &NodeLoad{Draining: b[1]&loadDraining != 0, revs: make([]revLoad, n)}
	l.Slots, l.Queue, l.Epoch = int(le.Uint16(b[2:])), float64(le.Uint32(b[4:])), le.Uint64(b[8:])
	l.Mean, l.Memory = float64(le.Uint64(b[16:]))/1e9, int64(min(le.Uint64(b[24:]), math.MaxInt64))
	for i := range l.revs {
		r := b[loadHead+i*loadRev:]
		l.revs[i] = revLoad{le.Uint64(r), float64(le.Uint32(r[8:])) / 1e6, placement.Code(min(r[12], uint8(placement.Warm)))}
	}
	slices.SortFunc(l.revs, func(a, b revLoad) int { return cmp.Compare(a.hash, b.hash) })
	return l, nil
}

// LoadReport is what this node tells the others of itself, at most 4 KiB; the
// link's heartbeat carries it, every 200 ms. ParseLoad reads it.
func (s *Service) LoadReport() []byte {
	busy, mean := s.inLine()
	revs := s.used.recent()
	b := make([]byte, loadHead, loadHead+len(revs)*loadRev)
	le := binary.LittleEndian
	b[0] = loadVersion
	if s.parting.Load() || s.draining.Load() {
		b[1] = loadDraining
	}
	le.PutUint16(b[2:], uint16(min(s.gate.slots, math.MaxUint16)))
	le.PutUint32(b[4:], uint32(busy))
	le.PutUint64(b[8:], s.used.epoch.Add(1))
	le.PutUint64(b[16:], uint64(mean))
	if s.cfg.FreeMemory != nil {
		le.PutUint64(b[24:], uint64(max(s.cfg.FreeMemory(), 0)))
	}
	le.PutUint16(b[32:], uint16(len(revs)))
	now := s.used.now()
	for _, u := range revs {
		b = le.AppendUint64(b, u.hash)
		b = le.AppendUint32(b, uint32(min(u.run(now)/1e3, math.MaxUint32)))
		b = append(b, byte(s.codeHere(u, now)))
	}
	return b
}

// SetDraining says whether this node is asked to take no more work: its doors
// stay open, and what comes in at them runs elsewhere while there is such a
// place. Unlike Drain it ends nothing.
func (s *Service) SetDraining(on bool) { s.parting.Store(on) }

const (
	usedKept = time.Hour        // after its last run a revision is forgotten with the next change
	usedNear = time.Minute      // after its last run a revision is taken to be in memory
	runKnown = 10 * time.Second // after its last run what one takes is not known any more

	runWeight = 8
)

// usage is what this node knows of the revisions that it ran or was asked for.
// It is read on the path of every invocation without a lock.
type usage struct {
	began time.Time
	epoch atomic.Uint64
	byPtr sync.Map // *lode.Revision -> *used; cleared when the catalog changes
	revs  sync.Map // hash -> *used
}

// used is one revision. Times are nanoseconds since usage.began, 0 = never.
type used struct {
	rev  *lode.Revision
	hash uint64

	asked   atomic.Int64 // when it was last looked for
	ran     atomic.Int64 // when a run last ended here
	wall    atomic.Int64 // ns of a warm run, moving average
	warming atomic.Bool

	regret placement.Regret // of hops; spread.mu guards it
}

// revHash tells a revision apart from any other: FNV-1a 64 of its id and the
// digest of its content, for a name may be removed and its numbers begin anew.
func revHash(rev *lode.Revision) uint64 {
	h := fnv.New64a()
	h.Write([]byte(rev.ID()))
	h.Write(rev.Digest[:])
	return h.Sum64()
}

// begin starts the clock, and the epochs above those of an earlier process.
func (u *usage) begin() {
	u.began = time.Now()
	u.epoch.Store(uint64(u.began.UnixNano()))
}

// now is never 0.
func (u *usage) now() int64 { return u.at(time.Now()) }

func (u *usage) at(t time.Time) int64 { return max(int64(t.Sub(u.began)), 1) }

// entry returns the entry of rev, made where there is none.
func (u *usage) entry(rev *lode.Revision) *used {
	if e, ok := u.byPtr.Load(rev); ok {
		return e.(*used)
	}
	hash := revHash(rev)
	e, ok := u.revs.Load(hash)
	if !ok {
		e, _ = u.revs.LoadOrStore(hash, &used{rev: rev, hash: hash})
	}
	e.(*used).asked.Store(u.now())
	u.byPtr.Store(rev, e)
	return e.(*used)
}

// changed follows the catalog: it makes new revisions, and equal ones anew.
func (u *usage) changed() {
	u.byPtr.Clear()
	now := u.now()
	u.revs.Range(func(hash, e any) bool {
		if x := e.(*used); now-max(x.ran.Load(), x.asked.Load()) > int64(usedKept) {
			u.revs.Delete(hash)
		}
		return true
	})
}

// near reports whether rev ran here lately, so that its code is in memory.
func (u *usage) near(rev *lode.Revision, now time.Time) bool {
	at := u.entry(rev).ran.Load()
	return at > 0 && u.at(now)-at < int64(usedNear)
}

// ended takes a run that ended here at a time.
func (u *usage) ended(rev *lode.Revision, at time.Time, wall time.Duration, cold bool) {
	e := u.entry(rev)
	e.ran.Store(u.at(at))
	if cold {
		return
	}
	old := e.wall.Load()
	if old == 0 {
		old = int64(wall)
	}
	e.wall.Store(max(1, old+(int64(wall)-old)/runWeight))
}

// run is what a run takes in ns, 0 if it is not known lately.
func (e *used) run(now int64) int64 {
	if at := e.ran.Load(); at == 0 || now-at > int64(runKnown) {
		return 0
	}
	return e.wall.Load()
}

// recent are the revisions that ran here last, at most loadRevsMost.
func (u *usage) recent() []*used {
	type dated struct {
		e  *used
		at int64
	}
	var all []dated
	u.revs.Range(func(_, e any) bool {
		if at := e.(*used).ran.Load(); at > 0 {
			all = append(all, dated{e.(*used), at})
		}
		return true
	})
	slices.SortFunc(all, func(a, b dated) int { return cmp.Compare(b.at, a.at) })
	out := make([]*used, min(len(all), loadRevsMost))
	for i := range out {
		out[i] = all[i].e
	}
	return out
}

// Codes is an optional ability of Pools: to tell how near a revision's code is
// to running on this node. It answers from memory. Without it what ran here in
// the last minute is taken to be in memory.
type Codes interface {
	Code(rev *lode.Revision) placement.Code
}

// codeHere is how near a revision's code is on this node.
func (s *Service) codeHere(e *used, now int64) placement.Code {
	if c, ok := s.cfg.Pools.(Codes); ok {
		return c.Code(e.rev)
	}
	switch at := e.ran.Load(); {
	case at == 0:
		return placement.Absent
	case now-at < int64(usedNear):
		return placement.Loaded
	}
	return placement.Compiled
}
