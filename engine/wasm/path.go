package wasm

// pathFuncs are the path_ functions of the preview.
func pathFuncs() []hostFunc {
	return []hostFunc{
		fn("path_create_directory", "iii", pathMkdir),
		fn("path_filestat_get", "iiiii", pathStat),
		fn("path_filestat_set_times", "iiiilli", pathTimes),
		fn("path_link", "iiiiiii", func(c *call, s []uint64) int32 { return linkless(c, s[0]) }),
		fn("path_open", "iiiiillii", pathOpen),
		fn("path_readlink", "iiiiii", pathReadlink),
		fn("path_remove_directory", "iii", func(c *call, s []uint64) int32 { return pathRemove(c, s, true) }),
		fn("path_rename", "iiiiii", pathRename),
		fn("path_symlink", "iiiii", func(c *call, s []uint64) int32 { return linkless(c, s[2]) }),
		fn("path_unlink_file", "iii", func(c *call, s []uint64) int32 { return pathRemove(c, s, false) }),
	}
}

// linkless answers what makes links, of which there are none here.
func linkless(c *call, fd uint64) errno {
	if _, _, e := c.regular(fd); e != eOK {
		return e
	}
	return eNotSup
}

// at finds the path of n bytes at ptr below fd.
func (c *call) at(fd, ptr, n uint64) (*files, place, errno) {
	f := c.tree()
	if f.open[uint32(fd)] == nil {
		return f, place{}, eBadf
	}
	if uint32(n) > 64<<10 {
		return f, place{}, eNameLong
	}
	b, ok := c.view(ptr, n)
	if !ok {
		return f, place{}, eFault
	}
	p, e := f.find(uint32(fd), string(b))
	return f, p, e
}

func pathMkdir(c *call, s []uint64) int32 {
	f, p, e := c.at(s[0], s[1], s[2])
	switch {
	case e != eOK:
		return e
	case p.n != nil:
		return eExist
	}
	now, _ := c.clock(clockRealtime)
	return f.make(&p, true, int64(now))
}

func pathStat(c *call, s []uint64) int32 {
	_, p, e := c.at(s[0], s[2], s[3])
	switch {
	case e != eOK:
		return e
	case p.n == nil:
		return eNoEnt
	}
	return c.putStat(p.n, s[4])
}

func pathTimes(c *call, s []uint64) int32 {
	_, p, e := c.at(s[0], s[2], s[3])
	switch {
	case e != eOK:
		return e
	case p.n == nil:
		return eNoEnt
	case p.n.ro:
		return eRofs
	}
	p.n.mtime = int64(s[5])
	return eOK
}

func pathReadlink(c *call, s []uint64) int32 {
	_, p, e := c.at(s[0], s[1], s[2])
	switch {
	case e != eOK:
		return e
	case p.n == nil:
		return eNoEnt
	}
	return eInval
}

// Flags of path_open.
const (
	openCreate = 1 << iota
	openDirectory
	openExclusive
	openTruncate
)

func pathOpen(c *call, s []uint64) int32 {
	f, p, e := c.at(s[0], s[2], s[3])
	if e != eOK {
		return e
	}
	flags := uint32(s[4])
	switch {
	case p.n == nil && flags&openCreate == 0:
		return eNoEnt
	case p.n == nil:
		now, _ := c.clock(clockRealtime)
		if e := f.make(&p, false, int64(now)); e != eOK {
			return e
		}
	case flags&openCreate != 0 && flags&openExclusive != 0:
		return eExist
	case flags&openDirectory != 0 && !p.n.isDir():
		return eNotDir
	case flags&openTruncate != 0 && p.n.isDir():
		return eIsDir
	case flags&openTruncate != 0:
		if e := f.resize(p.n, 0); e != eOK {
			return e
		}
	}
	o := &file{n: p.n, append: s[7]&1 != 0}
	if p.n.isDir() {
		o.path = p.at
	}
	fd, e := f.add(o)
	if e != eOK {
		return e
	}
	return or(eOK, c.put32(s[8], fd))
}

func pathRemove(c *call, s []uint64, dir bool) int32 {
	_, p, e := c.at(s[0], s[1], s[2])
	switch {
	case e != eOK:
		return e
	case p.n == nil:
		return eNoEnt
	case p.dir.ro || p.name == "":
		return eRofs
	case dir && !p.n.isDir():
		return eNotDir
	case !dir && p.n.isDir():
		return eIsDir
	case dir && len(p.n.kids) > 0:
		return eNotEmpty
	}
	p.remove()
	return eOK
}

func pathRename(c *call, s []uint64) int32 {
	_, from, e := c.at(s[0], s[1], s[2])
	if e != eOK {
		return e
	}
	_, to, e := c.at(s[3], s[4], s[5])
	switch {
	case e != eOK:
		return e
	case from.n == nil:
		return eNoEnt
	case from.dir.ro || to.dir.ro || from.name == "" || to.name == "":
		return eRofs
	case from.n == to.n:
		return eOK
	case from.n.isDir() && within(from.n, to.dir):
		return eInval
	case to.n != nil && to.n.isDir() != from.n.isDir():
		if to.n.isDir() {
			return eIsDir
		}
		return eNotDir
	case to.n != nil && len(to.n.kids) > 0:
		return eNotEmpty
	}
	from.remove()
	to.dir.kids[to.name] = from.n
	return eOK
}

// within reports whether n is dir or lies above it.
func within(n, dir *node) bool {
	if n == dir {
		return true
	}
	for _, k := range n.kids {
		if k.isDir() && within(k, dir) {
			return true
		}
	}
	return false
}
