package wasm

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/tetratelabs/wazero/sys"

	"lode/engine"
)

// wasiModule is WASI preview 1. What is here belongs to one invocation and is
// dropped at its end: nothing survives by construction.
const wasiModule = "wasi_snapshot_preview1"

// errno is an error number of WASI preview 1.
type errno = int32

// From the specification of preview 1.
const (
	eOK        errno = 0
	eAgain     errno = 6
	eBadf      errno = 8
	eExist     errno = 20
	eFault     errno = 21
	eInval     errno = 28
	eIsDir     errno = 31
	eNoEnt     errno = 44
	eNoSpace   errno = 51
	eNoSys     errno = 52
	eNotDir    errno = 54
	eNotEmpty  errno = 55
	eNotSock   errno = 57
	eNotSup    errno = 58
	ePerm      errno = 63
	eRofs      errno = 69
	eSpipe     errno = 70
	eNameLong  errno = 37
	eOverflow  errno = 61
	eManyFiles errno = 41
)

// wasi is what the preview keeps for one invocation.
type wasi struct {
	command  bool
	out, err lines
	args     []string
	env      []string
	known    bool // args and env are made
	files    *files
}

// lines turns bytes written into lines of log.
type lines struct {
	part []byte // of the line under way
	tail []byte // the last bytes written, for crash reports
}

const tailMax = 8 << 10

// again is a fresh wasi that keeps the buffers' memory.
func (w wasi) again() wasi {
	return wasi{out: lines{part: w.out.part[:0], tail: w.out.tail[:0]}, err: lines{part: w.err.part[:0], tail: w.err.tail[:0]}}
}

func (l *lines) write(c *call, p []byte) {
	l.tail = append(l.tail, p[max(0, len(p)-tailMax):]...)
	if over := len(l.tail) - tailMax; over > 4*tailMax {
		l.tail = append(l.tail[:0], l.tail[over:]...)
	}
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			l.part = append(l.part, p[:min(len(p), max(0, maxLine-len(l.part)))]...)
			return
		}
		if len(l.part) == 0 {
			c.log(0, p[:i])
		} else {
			l.part = append(l.part, p[:min(i, max(0, maxLine-len(l.part)))]...)
			c.log(0, l.part)
			l.part = l.part[:0]
		}
		p = p[i+1:]
	}
}

// flush logs lines without an end.
func (w *wasi) flush(c *call) {
	for _, l := range []*lines{&w.out, &w.err} {
		if len(l.part) > 0 {
			c.log(0, l.part)
			l.part = l.part[:0]
		}
	}
}

// put32 and put64 write a result; they report whether there is such memory.

func (c *call) put32(ptr uint64, v uint32) bool {
	b, ok := c.view(ptr, 4)
	if ok {
		binary.LittleEndian.PutUint32(b, v)
	}
	return ok
}

func (c *call) put64(ptr, v uint64) bool {
	b, ok := c.view(ptr, 8)
	if ok {
		binary.LittleEndian.PutUint64(b, v)
	}
	return ok
}

// or is e, or eFault when memory was missing.
func or(e errno, ok bool) errno {
	if !ok {
		return eFault
	}
	return e
}

// wasiFuncs are all functions of the preview.
func wasiFuncs() []hostFunc {
	fs := []hostFunc{
		fn("args_get", "ii", func(c *call, s []uint64) int32 { return c.putStrings(c.strings().args, s[0], s[1]) }),
		fn("args_sizes_get", "ii", func(c *call, s []uint64) int32 { return c.putSizes(c.strings().args, s[0], s[1]) }),
		fn("environ_get", "ii", func(c *call, s []uint64) int32 { return c.putStrings(c.strings().env, s[0], s[1]) }),
		fn("environ_sizes_get", "ii", func(c *call, s []uint64) int32 { return c.putSizes(c.strings().env, s[0], s[1]) }),
		fn("clock_res_get", "ii", clockRes),
		fn("clock_time_get", "ili", clockTime),
		fn("random_get", "ii", random),
		fn("sched_yield", "", func(c *call, s []uint64) int32 { c.check(); return eOK }),
		fn("poll_oneoff", "iiii", pollOneoff),
		fn("proc_raise", "i", func(*call, []uint64) int32 { return eNoSys }),
		{"proc_exit", procExit, sig("i"), nil},
		fn("sock_accept", "iii", notSocket),
		fn("sock_recv", "iiiiii", notSocket),
		fn("sock_send", "iiiii", notSocket),
		fn("sock_shutdown", "ii", notSocket),
	}
	return append(append(fs, fdFuncs()...), pathFuncs()...)
}

// procExit ends the guest. The instance stays whole, so that its memory is not
// taken away under it; it is not used again.
func procExit(c *call, s []uint64) { panic(sys.NewExitError(uint32(s[0]))) }

func notSocket(c *call, s []uint64) int32 {
	if c.isOpen(uint32(s[0])) {
		return eNotSock
	}
	return eBadf
}

const (
	clockRealtime  = 0
	clockMonotonic = 1
)

func clockRes(c *call, s []uint64) int32 {
	if uint32(s[0]) > clockMonotonic {
		return eInval
	}
	return or(eOK, c.put64(s[1], 1))
}

func clockTime(c *call, s []uint64) int32 {
	now, ok := c.clock(uint32(s[0]))
	if !ok {
		return eInval
	}
	return or(eOK, c.put64(s[2], now))
}

// clock is the guest's clock. Before the snapshot it stands still but for what
// was slept. The monotonic one begins at 1: Go's runtime takes 0 for a fault.
func (c *call) clock(id uint32) (uint64, bool) {
	switch {
	case id > clockMonotonic:
		return 0, false
	case c.inv == nil:
		return uint64(c.slept) + uint64(id), true
	case id == clockRealtime:
		return uint64(time.Now().UnixNano()), true
	}
	return uint64(c.now()), true
}

func random(c *call, s []uint64) int32 {
	b, ok := c.view(s[0], s[1])
	if !ok {
		return eFault
	}
	for len(b) > 0 && c.inv != nil {
		n := min(len(b), 64<<10)
		rand.Read(b[:n]) // never fails
		b = b[n:]
		c.check()
	}
	for i := range b { // the fixed stream: xorshift
		c.seed ^= c.seed << 13
		c.seed ^= c.seed >> 7
		c.seed ^= c.seed << 17
		b[i] = byte(c.seed)
	}
	return eOK
}

// putSizes and putStrings give args or env, each ended by a zero byte.

func (c *call) putSizes(list []string, count, size uint64) int32 {
	n := 0
	for _, s := range list {
		n += len(s) + 1
	}
	return or(eOK, c.put32(count, uint32(len(list))) && c.put32(size, uint32(n)))
}

func (c *call) putStrings(list []string, ptrs, buf uint64) int32 {
	for i, s := range list {
		b, ok := c.view(buf, uint64(len(s)+1))
		if !ok || !c.put32(ptrs+4*uint64(i), uint32(buf)) {
			return eFault
		}
		copy(b, s)
		b[len(s)] = 0
		buf += uint64(len(s) + 1)
	}
	return eOK
}

// poll_oneoff: a subscription is 48 bytes, an event 32.
//
//	subscription: u64 userdata, u8 kind (0 clock, 1 fd read, 2 fd write), 7 pad;
//	    clock: u32 id, 4 pad, u64 timeout, u64 precision, u16 flags (1 = absolute)
//	    fd: u32 fd
//	event: u64 userdata, u16 errno, u8 kind, 5 pad, u64 bytes, u16 flags
const (
	subSize   = 48
	eventSize = 32
	maxSubs   = 4096
)

func pollOneoff(c *call, s []uint64) int32 {
	n := uint64(uint32(s[2]))
	if n == 0 || n > maxSubs {
		return eInval
	}
	in, ok1 := c.view(s[0], n*subSize)
	out, ok2 := c.view(s[1], n*eventSize)
	if !ok1 || !ok2 {
		return eFault
	}
	in = bytes.Clone(in) // the areas may overlap
	began, real := c.now(), time.Now().UnixNano()
	for {
		events, until := c.polled(in, out, began, real)
		if events > 0 {
			return or(eOK, c.put32(s[3], uint32(events)))
		}
		if c.inv == nil {
			// Before the snapshot only the guest's own clock moves on.
			if until == 0 {
				return eNoSys
			}
			c.slept += until - c.now()
			began -= until - c.now()
			c.check()
			continue
		}
		c.block(until)
	}
}

// polled writes an event for each subscription that is due. until is the clock
// at which the next one is; 0: none.
func (c *call) polled(in, out []byte, began, real int64) (events int, until int64) {
	now := c.now()
	for ; len(in) > 0; in = in[subSize:] {
		kind, e, size := in[8], eOK, uint64(0)
		switch kind {
		case 0:
			at := due(in, began, real, c)
			if at > now {
				if until == 0 || at < until {
					until = at
				}
				continue
			}
		case 1, 2:
			var ready bool
			if ready, size, e = c.fdReady(binary.LittleEndian.Uint32(in[16:]), kind); !ready {
				continue
			}
		default:
			e = eInval
		}
		ev := out[events*eventSize:][:eventSize]
		clear(ev)
		copy(ev, in[:8])
		binary.LittleEndian.PutUint16(ev[8:], uint16(e))
		ev[10] = kind
		binary.LittleEndian.PutUint64(ev[16:], size)
		events++
	}
	return events, until
}

// due is when a clock subscription fires, on our monotonic clock.
func due(sub []byte, began, real int64, c *call) int64 {
	id := binary.LittleEndian.Uint32(sub[16:])
	timeout := int64(min(binary.LittleEndian.Uint64(sub[24:]), 1<<62))
	if absolute := sub[40]&1 != 0; absolute {
		switch {
		case c.inv == nil:
			timeout -= c.slept
		case id == clockRealtime:
			timeout -= real
		default:
			timeout -= began
		}
	}
	if timeout < 0 {
		return began
	}
	return began + timeout
}

// fdReady reports whether fd can be read or written without waiting.
func (c *call) fdReady(fd uint32, kind byte) (ready bool, size uint64, e errno) {
	switch {
	case fd == completionFD && kind == 1:
		if c.ops != nil && c.ops.waiting() {
			return true, completionSize, eOK
		}
		return false, 0, eOK
	case !c.isOpen(fd):
		return true, 0, eBadf
	}
	return true, engine.ReplyMax, eOK
}
