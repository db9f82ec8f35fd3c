package bus

// packs counts, for each message of the log, what in it is still needed, so
// that the front can be trimmed. A message is one pack.
type packs struct {
	front uint64 // position of list[0]
	list  []pack
	total int64 // bytes of all packs
	live  int64 // bytes of what is still needed, about
}

type pack struct {
	bytes int64
	live  int // items whose place is here
}

const packCost = 200 // bytes that a message takes beside its content

// add notes a message at seq, and those before it that nobody told of.
func (p *packs) add(seq uint64, size int) {
	if len(p.list) == 0 {
		p.front = seq
	}
	for next := p.front + uint64(len(p.list)); next <= seq; next++ {
		k := pack{bytes: packCost}
		if next == seq {
			k.bytes += int64(size)
		}
		p.list = append(p.list, k)
		p.total += k.bytes
	}
}

// move takes an item from its place to another; the zero place is nowhere.
func (p *packs) move(it *item, to place) {
	if it.at.seq != 0 {
		p.list[it.at.seq-p.front].live--
		p.live -= it.cost()
	}
	it.at = to
	if to.seq != 0 {
		p.list[to.seq-p.front].live++
		p.live += it.cost()
	}
}

func (it *item) cost() int64 { return int64(it.size+len(it.id)+len(it.q.name)) + packCost }

// trim forgets the packs before floor.
func (p *packs) trim(floor uint64) {
	for len(p.list) > 0 && p.front < floor {
		p.total -= p.list[0].bytes
		p.list = p.list[1:]
		p.front++
	}
}

// clean says up to which position the log should be cleaned now: 0, or a
// position behind the older half. The front is worth the work when more than
// half of the log, and at least slack bytes, is not needed.
func (p *packs) clean(slack int64) uint64 {
	if p.total < 2*p.live+slack {
		return 0
	}
	seq, sum := p.front, int64(0)
	for _, k := range p.list {
		if sum += k.bytes; sum > p.total/2 {
			break
		}
		seq++
	}
	return max(seq, p.front+1)
}

// firstLive is the first position that something still needs, at most limit.
func (p *packs) firstLive(limit uint64) uint64 {
	for i, k := range p.list {
		if k.live > 0 || p.front+uint64(i) >= limit {
			return p.front + uint64(i)
		}
	}
	return limit
}
