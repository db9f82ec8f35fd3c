package wasm

import (
	"encoding/binary"
	"maps"
	"slices"
)

// fdFuncs are the fd_ functions of the preview.
func fdFuncs() []hostFunc {
	ok := func(c *call, s []uint64) int32 {
		if !c.isOpen(uint32(s[0])) {
			return eBadf
		}
		return eOK
	}
	return []hostFunc{
		fn("fd_advise", "illi", ok),
		fn("fd_allocate", "ill", fdAllocate),
		fn("fd_close", "i", fdClose),
		fn("fd_datasync", "i", ok),
		fn("fd_fdstat_get", "ii", fdStat),
		fn("fd_fdstat_set_flags", "ii", fdSetFlags),
		fn("fd_fdstat_set_rights", "ill", ok),
		fn("fd_filestat_get", "ii", fdFilestat),
		fn("fd_filestat_set_size", "il", fdSetSize),
		fn("fd_filestat_set_times", "illi", ok),
		fn("fd_pread", "iiili", fdPread),
		fn("fd_prestat_get", "ii", fdPrestat),
		fn("fd_prestat_dir_name", "iii", fdPrestatName),
		fn("fd_pwrite", "iiili", fdPwrite),
		fn("fd_read", "iiii", fdRead),
		fn("fd_readdir", "iiili", fdReaddir),
		fn("fd_renumber", "ii", fdRenumber),
		fn("fd_seek", "ilii", fdSeek),
		fn("fd_sync", "i", ok),
		fn("fd_tell", "ii", func(c *call, s []uint64) int32 { return fdSeek(c, []uint64{s[0], 0, 1, s[1]}) }),
		fn("fd_write", "iiii", fdWrite),
	}
}

// regular is the open file or directory fd; e says why it is none.
func (c *call) regular(fd uint64) (*files, *file, errno) {
	f := c.tree()
	if o := f.open[uint32(fd)]; o != nil {
		return f, o, eOK
	}
	if c.isOpen(uint32(fd)) {
		return f, nil, eSpipe
	}
	return f, nil, eBadf
}

// vectors calls f for each of n buffers (u32 pointer, u32 length) at ptr, until
// f takes less than it was given. It returns the sum of what f took.
func (c *call) vectors(ptr, n uint64, f func(b []byte) (int, errno)) (sum uint32, e errno) {
	n = uint64(uint32(n))
	if n > 1024 {
		return 0, eInval
	}
	vec, ok := c.view(ptr, n*8)
	if !ok {
		return 0, eFault
	}
	for ; len(vec) > 0; vec = vec[8:] {
		c.check() // buffers may be large, and the same one many times
		b, ok := c.view(uint64(binary.LittleEndian.Uint32(vec)), uint64(binary.LittleEndian.Uint32(vec[4:])))
		if !ok {
			return sum, eFault
		}
		k, e := f(b)
		sum += uint32(k)
		if e != eOK || k < len(b) {
			if sum > 0 {
				e = eOK
			}
			return sum, e
		}
	}
	return sum, eOK
}

func fdRead(c *call, s []uint64) int32 {
	var read func(b []byte) (int, errno)
	switch fd := uint32(s[0]); {
	case fd == completionFD:
		read = c.readCompletions
	case fd == 0 && c.isOpen(0):
		read = c.readStdin
	case fd < 3:
		return eBadf
	default:
		_, o, e := c.regular(s[0])
		if e != eOK {
			return e
		}
		if o.n.isDir() {
			return eIsDir
		}
		read = func(b []byte) (int, errno) {
			k, e := o.n.readAt(b, o.pos)
			o.pos += int64(k)
			return k, e
		}
	}
	n, e := c.vectors(s[1], s[2], read)
	if e != eOK {
		return e
	}
	return or(eOK, c.put32(s[3], n))
}

// readStdin is the body for commands, and nothing for handlers.
func (c *call) readStdin(b []byte) (int, errno) {
	if !c.wasi.command {
		return 0, eOK
	}
	return c.readBody(b), eOK
}

// readCompletions gives whole records, as wait writes them.
func (c *call) readCompletions(b []byte) (int, errno) {
	n := 0
	for c.ops != nil && len(b)-n >= completionSize {
		done, ok, _ := c.ops.tell()
		if !ok {
			break
		}
		done.Append(b[n:n])
		n += completionSize
	}
	if n == 0 && len(b) > 0 {
		return 0, eAgain
	}
	return n, eOK
}

func fdWrite(c *call, s []uint64) int32 {
	var write func(b []byte) (int, errno)
	switch fd := uint32(s[0]); {
	case fd == completionFD:
		return eBadf
	case fd == 0 || fd < 3 && !c.isOpen(fd):
		return eBadf
	case fd == 1:
		write = c.writeStdout
	case fd == 2:
		write = func(b []byte) (int, errno) { c.wasi.err.write(c, b); return len(b), eOK }
	default:
		f, o, e := c.regular(s[0])
		if e != eOK {
			return e
		}
		write = func(b []byte) (int, errno) { return c.writeFile(f, o, b) }
	}
	n, e := c.vectors(s[1], s[2], write)
	if e != eOK {
		return e
	}
	return or(eOK, c.put32(s[3], n))
}

func (c *call) writeFile(f *files, o *file, b []byte) (int, errno) {
	if o.n.isDir() {
		return 0, eIsDir
	}
	if o.append {
		o.pos = o.n.size()
	}
	now, _ := c.clock(clockRealtime)
	if e := f.writeAt(o.n, b, o.pos, int64(now)); e != eOK {
		return 0, e
	}
	o.pos += int64(len(b))
	return len(b), eOK
}

// writeStdout is the answer of a command, and lines of log of a handler.
func (c *call) writeStdout(b []byte) (int, errno) {
	if !c.wasi.command || c.inv == nil {
		c.wasi.out.write(c, b)
		return len(b), eOK
	}
	c.answered = true
	r := &c.inv.Reply
	for rest := b; len(rest) > 0; {
		n := min(len(rest), writeWindow-len(r.Body))
		r.Body = append(r.Body, rest[:n]...)
		rest = rest[n:]
		if len(r.Body) == writeWindow {
			if err := c.send(); err != nil {
				return 0, ePipe
			}
		}
	}
	return len(b), eOK
}

const ePipe errno = 64

func fdPread(c *call, s []uint64) int32 {
	_, o, e := c.regular(s[0])
	if e != eOK {
		return e
	}
	if o.n.isDir() {
		return eIsDir
	}
	off := int64(s[3])
	n, e := c.vectors(s[1], s[2], func(b []byte) (int, errno) {
		k, e := o.n.readAt(b, off)
		off += int64(k)
		return k, e
	})
	if e != eOK {
		return e
	}
	return or(eOK, c.put32(s[4], n))
}

func fdPwrite(c *call, s []uint64) int32 {
	f, o, e := c.regular(s[0])
	if e != eOK {
		return e
	}
	if o.n.isDir() {
		return eIsDir
	}
	off, now := int64(s[3]), int64(0)
	n, e := c.vectors(s[1], s[2], func(b []byte) (int, errno) {
		if e := f.writeAt(o.n, b, off, now); e != eOK {
			return 0, e
		}
		off += int64(len(b))
		return len(b), eOK
	})
	if e != eOK {
		return e
	}
	return or(eOK, c.put32(s[4], n))
}

func fdAllocate(c *call, s []uint64) int32 {
	f, o, e := c.regular(s[0])
	if e != eOK {
		return e
	}
	off, n := int64(s[1]), int64(s[2])
	if o.n.isDir() || off < 0 || n < 0 || off > f.limit || n > f.limit {
		return eInval
	}
	if off+n <= o.n.size() {
		return eOK
	}
	return f.resize(o.n, off+n)
}

func fdSetSize(c *call, s []uint64) int32 {
	f, o, e := c.regular(s[0])
	if e != eOK {
		return e
	}
	size := int64(s[1])
	if o.n.isDir() || size < 0 {
		return eInval
	}
	return f.resize(o.n, size)
}

func fdClose(c *call, s []uint64) int32 {
	f, fd := c.tree(), uint32(s[0])
	switch {
	case !c.isOpen(fd):
		return eBadf
	case fd == completionFD:
		return eOK // it is always there
	case fd < 3:
		f.closed[fd] = true
	default:
		delete(f.open, fd)
	}
	return eOK
}

func fdRenumber(c *call, s []uint64) int32 {
	f, from, to := c.tree(), uint32(s[0]), uint32(s[1])
	if f.open[from] == nil || f.open[to] == nil {
		if c.isOpen(from) && c.isOpen(to) {
			return eNotSup
		}
		return eBadf
	}
	f.open[to] = f.open[from]
	if from != to {
		delete(f.open, from)
	}
	return eOK
}

func fdSeek(c *call, s []uint64) int32 {
	_, o, e := c.regular(s[0])
	if e != eOK {
		return e
	}
	if o.n.isDir() {
		return eBadf
	}
	off := int64(s[1])
	switch uint32(s[2]) {
	case 0:
	case 1:
		off += o.pos
	case 2:
		off += o.n.size()
	default:
		return eInval
	}
	if off < 0 {
		return eInval
	}
	o.pos = off
	return or(eOK, c.put64(s[3], uint64(off)))
}

// File types of the preview.
const (
	typeChar = 2
	typeDir  = 3
	typeFile = 4
)

func (n *node) kind() byte {
	if n.isDir() {
		return typeDir
	}
	return typeFile
}

// fdStat writes 24 bytes: u8 type, u16 flags at 2, u64 rights, u64 rights of
// what is opened below. Rights are all there: what may not be done fails.
func fdStat(c *call, s []uint64) int32 {
	fd := uint32(s[0])
	if !c.isOpen(fd) {
		return eBadf
	}
	b, ok := c.view(s[1], 24)
	if !ok {
		return eFault
	}
	clear(b)
	b[0] = typeChar
	if _, o, e := c.regular(s[0]); e == eOK {
		b[0] = o.n.kind()
		if o.append {
			b[2] = 1
		}
	}
	if fd == completionFD {
		b[2] = 4 // non-blocking
	}
	const rights = 1<<29 - 1
	binary.LittleEndian.PutUint64(b[8:], rights)
	binary.LittleEndian.PutUint64(b[16:], rights)
	return eOK
}

func fdSetFlags(c *call, s []uint64) int32 {
	if !c.isOpen(uint32(s[0])) {
		return eBadf
	}
	if _, o, e := c.regular(s[0]); e == eOK {
		o.append = s[1]&1 != 0
	}
	return eOK
}

func fdFilestat(c *call, s []uint64) int32 {
	if !c.isOpen(uint32(s[0])) {
		return eBadf
	}
	_, o, e := c.regular(s[0])
	if e != eOK {
		o = &file{}
	}
	return c.putStat(o.n, s[1])
}

// putStat writes the 64 bytes of a filestat; nil is a stream.
func (c *call) putStat(n *node, ptr uint64) errno {
	b, ok := c.view(ptr, 64)
	if !ok {
		return eFault
	}
	clear(b)
	b[16] = typeChar
	if n != nil {
		binary.LittleEndian.PutUint64(b[8:], n.id)
		b[16] = n.kind()
		binary.LittleEndian.PutUint64(b[32:], uint64(n.size()))
		for _, at := range []int{40, 48, 56} {
			binary.LittleEndian.PutUint64(b[at:], uint64(n.mtime))
		}
	}
	binary.LittleEndian.PutUint64(b[24:], 1)
	return eOK
}

func fdPrestat(c *call, s []uint64) int32 {
	o := c.tree().open[uint32(s[0])]
	if o == nil || !o.pre {
		return eBadf
	}
	return or(eOK, c.put32(s[1], 0) && c.put32(s[1]+4, 1)) // a directory; its name has one byte
}

func fdPrestatName(c *call, s []uint64) int32 {
	o := c.tree().open[uint32(s[0])]
	if o == nil || !o.pre {
		return eBadf
	}
	b, ok := c.view(s[1], s[2])
	if !ok {
		return eFault
	}
	if len(b) < 1 {
		return eNameLong
	}
	b[0] = '/'
	return eOK
}

// fdReaddir writes entries of 24 bytes (u64 next, u64 inode, u32 length of the
// name, u8 type) and their names, the last one cut when it does not fit.
func fdReaddir(c *call, s []uint64) int32 {
	_, o, e := c.regular(s[0])
	if e != eOK {
		return e
	}
	if !o.n.isDir() {
		return eNotDir
	}
	buf, ok := c.view(s[1], s[2])
	if !ok {
		return eFault
	}
	names := append([]string{".", ".."}, slices.Sorted(maps.Keys(o.n.kids))...)
	used := 0
	for i := int(min(s[3], uint64(len(names)))); i < len(names) && used < len(buf); i++ {
		n := o.n.kids[names[i]]
		if n == nil {
			n = o.n // . and ..
		}
		var head [24]byte
		binary.LittleEndian.PutUint64(head[:], uint64(i+1))
		binary.LittleEndian.PutUint64(head[8:], n.id)
		binary.LittleEndian.PutUint32(head[16:], uint32(len(names[i])))
		head[20] = n.kind()
		used += copy(buf[used:], head[:])
		used += copy(buf[used:], names[i])
	}
	return or(eOK, c.put32(s[4], uint32(used)))
}
