package invoke

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"lode"
	"lode/bus"
)

// memory is a disk for Tables and Queues: it outlives the services on it.
type memory struct {
	mu     sync.Mutex
	rev    uint64
	tables map[string]map[string]bus.Entry
	items  []*memItem
	number uint64
	ended  map[string]time.Time // queue and id of what is remembered
	conf   map[string]bus.QueueConfig
	news   chan struct{}
	fail   func(op, key string) error // consulted before each write
	done   bool                       // a write of a table that fails is done all the same
	gen    int                        // of the newest writer of the queues
}

type memItem struct {
	bus.Item
	until time.Time // taken until
	taken bool
	gone  bool
}

func newMemory() *memory {
	return &memory{tables: map[string]map[string]bus.Entry{}, ended: map[string]time.Time{}, conf: map[string]bus.QueueConfig{}, news: make(chan struct{})}
}

// restart gives back what was taken, as a bus does.
func (m *memory) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range m.items {
		it.taken = false
	}
	m.tell()
}

// setFail sets what fails, and whether it is done all the same.
func (m *memory) setFail(done bool, fail func(op, key string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done, m.fail = done, fail
}

// renumber gives every entry another revision, as a copy of the tables has.
func (m *memory) renumber() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, kv := range m.tables {
		for k, e := range kv {
			m.rev++
			e.Rev = m.rev
			kv[k] = e
		}
	}
}

// count is how many entries the tables have.
func (m *memory) count(tables ...string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range tables {
		n += len(m.tables[t])
	}
	return n
}

func (m *memory) tell() {
	close(m.news)
	m.news = make(chan struct{})
}

func (m *memory) Table(_ context.Context, name string) (Table, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tables[name] == nil {
		m.tables[name] = map[string]bus.Entry{}
	}
	return &memTable{m, name, m.tables[name]}, nil
}

type memTable struct {
	m    *memory
	name string
	kv   map[string]bus.Entry
}

func (t *memTable) Get(_ context.Context, key string) (bus.Entry, bool, error) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	e, ok := t.kv[key]
	return e, ok, nil
}

// write sets key if its revision is rev; any: whatever it is.
func (t *memTable) write(ctx context.Context, op, key string, value []byte, rev uint64, any bool) (uint64, error) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if ctx.Err() != nil {
		return 0, lode.Errorf(lode.Cancelled, "write %s: %w", key, ctx.Err())
	}
	if len(value) > bus.MaxValue {
		return 0, lode.Errorf(lode.TooLarge, "a value has at most %d bytes", bus.MaxValue)
	}
	if t.m.fail != nil {
		if err := t.m.fail(t.name+" "+op, key); err != nil {
			if t.m.done {
				_, _ = t.set(op, key, value, rev, any)
			}
			return 0, err
		}
	}
	return t.set(op, key, value, rev, any)
}

func (t *memTable) set(op, key string, value []byte, rev uint64, any bool) (uint64, error) {
	if old := t.kv[key]; !any && old.Rev != rev {
		return 0, lode.Errorf(lode.Precondition, "%s was changed", key)
	}
	if op == "delete" {
		delete(t.kv, key)
		return 0, nil
	}
	t.m.rev++
	t.kv[key] = bus.Entry{Key: key, Value: slices.Clone(value), Rev: t.m.rev}
	return t.m.rev, nil
}

func (t *memTable) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	return t.write(ctx, "put", key, value, 0, true)
}

func (t *memTable) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	rev, err := t.write(ctx, "create", key, value, 0, false)
	if lode.KindOf(err) == lode.Precondition {
		err = lode.Errorf(lode.Conflict, "%s exists", key)
	}
	return rev, err
}

func (t *memTable) Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	return t.write(ctx, "update", key, value, rev, false)
}

func (t *memTable) Delete(ctx context.Context, key string, rev uint64) error {
	_, err := t.write(ctx, "delete", key, nil, rev, rev == 0)
	return err
}

func (t *memTable) List(_ context.Context, prefix string) (out []bus.Entry, _ error) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	for k, e := range t.kv {
		if strings.HasPrefix(k, prefix) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b bus.Entry) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

func (m *memory) Configure(queue string, c bus.QueueConfig) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conf[queue] = c
}

func (m *memory) put(items []bus.Item) (n int) {
	for _, it := range items {
		id := it.Queue + "\n" + it.ID
		if m.find(it.Queue, it.ID) != nil || time.Now().Before(m.ended[id]) {
			continue
		}
		m.number++
		it.Number, it.Put, it.Size = m.number, time.Now(), len(it.Body)
		m.items = append(m.items, &memItem{Item: it})
		n++
	}
	m.tell()
	return n
}

func (m *memory) find(queue, id string) *memItem {
	for _, it := range m.items {
		if it.Queue == queue && it.ID == id {
			return it
		}
	}
	return nil
}

func (m *memory) Put(ctx context.Context, items ...bus.Item) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		return 0, lode.Errorf(lode.Cancelled, "put: %w", ctx.Err())
	}
	if m.fail != nil {
		id := ""
		if len(items) > 0 {
			id = items[0].ID
		}
		if err := m.fail("queue put", id); err != nil {
			return 0, err
		}
	}
	return m.put(items), nil
}

func (m *memory) Pull(ctx context.Context, queue string, n int, wait time.Duration) ([]Delivery, error) {
	return m.pull(ctx, queue, n, wait, func() bool { return true })
}

// pull is Pull of one who may not take anything any more.
func (m *memory) pull(ctx context.Context, queue string, n int, wait time.Duration, may func() bool) ([]Delivery, error) {
	end := time.Now().Add(wait)
	for {
		m.mu.Lock()
		now, next := time.Now(), end
		var out []Delivery
		for _, it := range m.items {
			if it.Queue != queue || !may() {
				continue
			}
			if at := later(it.Due, it.until, it.taken); at.After(now) {
				if at.Before(next) {
					next = at
				}
				continue
			}
			if len(out) < n {
				it.taken, it.until = true, now.Add(cmp.Or(m.conf[queue].Visible, 30*time.Second))
				it.Deliveries++
				out = append(out, &memDelivery{m: m, it: it, Item: it.Item})
			}
		}
		news := m.news
		m.mu.Unlock()
		if len(out) > 0 || !now.Before(end) {
			return out, nil
		}
		t := time.NewTimer(next.Sub(now))
		select {
		case <-news:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, lode.Errorf(lode.Cancelled, "pull: %w", ctx.Err())
		}
		t.Stop()
	}
}

func later(due, until time.Time, taken bool) time.Time {
	if taken && until.After(due) {
		return until
	}
	return due
}

func (m *memory) state(it *memItem) bus.Item {
	out := it.Item
	switch {
	case it.taken && time.Now().Before(it.until):
		out.State = bus.Taken
	case time.Now().Before(it.Due):
		out.State = bus.Waiting
	default:
		out.State = bus.Ready
	}
	return out
}

func (m *memory) Get(_ context.Context, queue, id string) (bus.Item, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if it := m.find(queue, id); it != nil {
		return m.state(it), nil
	}
	return bus.Item{}, lode.Errorf(lode.NotFound, "no item %s", id)
}

func (m *memory) List(queue string, after uint64, n int) (out []bus.Item) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range m.items {
		if it.Queue == queue && it.Number > after && len(out) < n {
			i := m.state(it)
			i.Body = nil
			out = append(out, i)
		}
	}
	return out
}

func (m *memory) end(it *memItem) {
	if !it.gone {
		it.gone = true
		m.items = slices.DeleteFunc(m.items, func(o *memItem) bool { return o == it })
		if it.Remember >= 0 {
			m.ended[it.Queue+"\n"+it.ID] = time.Now().Add(cmp.Or(it.Remember, m.conf[it.Queue].Remember))
		}
	}
}

func (m *memory) Remove(_ context.Context, queue, id string) (bus.Item, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it := m.find(queue, id)
	if it == nil {
		return bus.Item{}, lode.Errorf(lode.NotFound, "no item %s", id)
	}
	m.end(it)
	return it.Item, nil
}

func (m *memory) Depth(queue string) (d bus.Depth) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range m.items {
		if it.Queue != queue {
			continue
		}
		switch m.state(it).State {
		case bus.Taken:
			d.Taken++
		case bus.Waiting:
			d.Waiting++
		default:
			d.Ready++
		}
		if d.Oldest.IsZero() {
			d.Oldest = it.Put
		}
	}
	return d
}

func (m *memory) Names() (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range m.items {
		out = append(out, it.Queue)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

type memDelivery struct {
	m  *memory
	it *memItem
	bus.Item
}

func (d *memDelivery) Work() *bus.Item { return &d.Item }

func (d *memDelivery) Ack(ctx context.Context, then ...bus.Item) error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if ctx.Err() != nil {
		return lode.Errorf(lode.Cancelled, "ack: %w", ctx.Err())
	}
	if d.m.fail != nil {
		if err := d.m.fail("queue ack", d.ID); err != nil {
			return err
		}
	}
	if !d.it.gone {
		d.m.end(d.it)
		d.m.put(then)
	}
	return nil
}

func (d *memDelivery) lapsed() bool {
	return d.it.gone || !d.it.taken || d.it.Deliveries != d.Deliveries || !time.Now().Before(d.it.until)
}

func (d *memDelivery) Nak(ctx context.Context, delay time.Duration, note string) error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if ctx.Err() != nil {
		return lode.Errorf(lode.Cancelled, "nak: %w", ctx.Err())
	}
	if d.lapsed() {
		return lode.Errorf(lode.Precondition, "lapsed")
	}
	d.it.taken, d.it.Due, d.it.Note = false, time.Now().Add(delay), note
	d.m.tell()
	return nil
}

func (d *memDelivery) Extend(visible time.Duration) error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.lapsed() {
		return lode.Errorf(lode.Precondition, "lapsed")
	}
	d.it.until = time.Now().Add(visible)
	return nil
}

var (
	_ Tables   = (*memory)(nil)
	_ Queues   = (*memory)(nil)
	_ Table    = (*memTable)(nil)
	_ Delivery = (*memDelivery)(nil)
)
