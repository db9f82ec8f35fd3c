package wasm

import (
	"slices"
	"strings"

	"lode/sdk/abi"
)

// completionFD and the size of what it gives.
const (
	completionFD   = abi.CompletionFD
	completionSize = 12
)

// node is a file or a directory of an invocation's own tree:
//
//	/        read-only
//	/tmp     empty at first, in memory, up to Limits.Tmp
//	/shard   jobs: the shard, read-only
type node struct {
	id    uint64
	kids  map[string]*node // directories
	data  []byte           // files
	shard windowFile       // /shard
	ro    bool
	mtime int64
}

func (n *node) isDir() bool { return n.kids != nil }

func (n *node) size() int64 {
	if n.shard != nil {
		_, size := n.shard.File()
		return size
	}
	return int64(len(n.data))
}

// file is an open descriptor.
type file struct {
	n      *node
	path   []string // of directories, from the root
	pos    int64
	append bool
	pre    bool // the preopened root
}

// files are the tree and the descriptor table of one invocation. Descriptors
// 0 to 2 are the streams, 3 is the root.
type files struct {
	root   *node
	open   map[uint32]*file
	closed [3]bool // of the streams
	used   int64   // bytes in files
	limit  int64
	nodes  uint64
}

// Bounds of one invocation's tree.
const (
	maxNodes = 1 << 16
	maxOpen  = 1 << 12
	maxDepth = 128
	maxName  = 255
)

// tree makes the files when they are first asked for.
func (c *call) tree() *files {
	if c.wasi.files != nil {
		return c.wasi.files
	}
	limit := c.sb.p.c.Limits.Tmp
	if limit <= 0 {
		limit = 512 << 20
	}
	f := &files{limit: limit, nodes: 2}
	f.root = &node{id: 1, ro: true, kids: map[string]*node{"tmp": {id: 2, kids: map[string]*node{}}}}
	if c.inv != nil && c.inv.Windows != nil {
		f.nodes++
		f.root.kids["shard"] = &node{id: f.nodes, ro: true, shard: c.inv.Windows}
	}
	f.open = map[uint32]*file{3: {n: f.root, pre: true}}
	c.wasi.files = f
	return f
}

// isOpen reports whether fd is a descriptor.
func (c *call) isOpen(fd uint32) bool {
	if fd == completionFD {
		return true
	}
	f := c.tree()
	if fd < 3 {
		return !f.closed[fd]
	}
	return f.open[fd] != nil
}

// add opens n under the lowest free number.
func (f *files) add(o *file) (uint32, errno) {
	if len(f.open) >= maxOpen {
		return 0, eManyFiles
	}
	for fd := uint32(3); ; fd++ {
		if f.open[fd] == nil && fd != completionFD {
			f.open[fd] = o
			return fd, eOK
		}
	}
}

// place is where a path leads: name in dir, and what is there now. name is ""
// when the path leads to dir itself.
type place struct {
	dir  *node
	at   []string // path of dir
	name string
	n    *node // nil: nothing
}

const eNotCapable errno = 76

// find follows path from the directory that fd stands for.
func (f *files) find(fd uint32, path string) (p place, e errno) {
	from := f.open[fd]
	switch {
	case from == nil:
		return p, eBadf
	case !from.n.isDir():
		return p, eNotDir
	case path == "" || strings.IndexByte(path, 0) >= 0:
		return p, eInval
	}
	steps := slices.Clone(from.path)
	for s := range strings.SplitSeq(path, "/") {
		switch {
		case s == "" || s == ".":
			continue
		case s == "..":
			if len(steps) == 0 {
				return p, eNotCapable
			}
			steps = steps[:len(steps)-1]
		case len(s) > maxName || len(steps) >= maxDepth:
			return p, eNameLong
		default:
			steps = append(steps, s)
		}
	}
	if len(steps) == 0 {
		return place{dir: f.root, n: f.root}, eOK
	}
	dir := f.root
	for _, s := range steps[:len(steps)-1] {
		next := dir.kids[s]
		if next == nil {
			return p, eNoEnt
		}
		if !next.isDir() {
			return p, eNotDir
		}
		dir = next
	}
	name := steps[len(steps)-1]
	return place{dir: dir, at: steps, name: name, n: dir.kids[name]}, eOK
}

// make creates a file or directory at p.
func (f *files) make(p *place, dir bool, now int64) errno {
	switch {
	case p.dir.ro || p.name == "":
		return eRofs
	case f.nodes >= maxNodes:
		return eNoSpace
	}
	f.nodes++
	p.n = &node{id: f.nodes, mtime: now}
	if dir {
		p.n.kids = map[string]*node{}
	}
	p.dir.kids[p.name] = p.n
	return eOK
}

// remove takes n out of the tree. Its bytes stay charged: a descriptor may
// still hold them.
func (p *place) remove() { delete(p.dir.kids, p.name) }

// resize makes n size bytes long.
func (f *files) resize(n *node, size int64) errno {
	if n.ro {
		return eRofs
	}
	grow := size - int64(len(n.data))
	if grow > 0 && f.used+grow > f.limit {
		return eNoSpace
	}
	f.used += grow
	if grow <= 0 {
		clear(n.data[size:])
		n.data = n.data[:size]
		return eOK
	}
	n.data = append(n.data, make([]byte, grow)...)
	return eOK
}

// writeAt writes b at off, with zeros in the gap.
func (f *files) writeAt(n *node, b []byte, off, now int64) errno {
	if n.ro {
		return eRofs
	}
	if off < 0 || off+int64(len(b)) > f.limit {
		return eNoSpace
	}
	if end := off + int64(len(b)); end > int64(len(n.data)) {
		if e := f.resize(n, end); e != eOK {
			return e
		}
	}
	copy(n.data[off:], b)
	n.mtime = now
	return eOK
}

// readAt reads into b, which may be the guest's memory: no system call sees it.
func (n *node) readAt(b []byte, off int64) (int, errno) {
	if off < 0 {
		return 0, eInval
	}
	if off >= n.size() {
		return 0, eOK
	}
	if n.shard == nil {
		return copy(b, n.data[off:]), eOK
	}
	b = b[:min(int64(len(b)), n.size()-off)]
	buf := make([]byte, min(len(b), 256<<10))
	done := 0
	for done < len(b) {
		k, err := n.shard.ReadAt(buf[:min(len(buf), len(b)-done)], off+int64(done))
		done += copy(b[done:], buf[:k])
		if err != nil && k == 0 {
			const eIO = 29
			return done, eIO
		}
	}
	return done, eOK
}
