package bus

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"lode"
)

// QueuesConfig bounds a set of queues. The zero value works.
type QueuesConfig struct {
	// Memory is the most bytes of bodies kept in memory; bodies beyond it are
	// read from the disk when their turn comes. 0: 64 MiB.
	Memory int64
	// Slack is how many bytes of the log may be of no more use before its
	// front is cleaned; a smaller one makes the restart faster and the
	// writing slower. 0: 16 MiB.
	Slack int64
}

// QueueConfig bounds one queue. The zero value works.
type QueueConfig struct {
	Max     int           // items in it; a Put beyond is Overloaded. 0: 1,000,000
	Visible time.Duration // how long a pulled item is held back from others. 0: 30 s
	Keep    time.Duration // items older than this are dropped. 0: never
	// Remember is how long the id of an item that ended is still refused as a
	// duplicate, where the Item says nothing itself. 0: 10 min. Ids that the
	// queue made are not remembered.
	Remember time.Duration
}

func (c QueueConfig) withDefaults() QueueConfig {
	c.Max = cmp.Or(c.Max, 1_000_000)
	c.Visible = cmp.Or(c.Visible, 30*time.Second)
	c.Remember = cmp.Or(c.Remember, 10*time.Minute)
	return c
}

// Item is one piece of work in a queue.
type Item struct {
	Queue string // any text of 1 to 256 bytes
	// ID is unique in the queue among what is in it and what it remembers; ""
	// makes one up. At most 256 bytes.
	ID       string
	Body     []byte // must not be changed after Put
	Priority int    // higher ones come first; among equals the oldest
	// Due is when the item may be pulled, by the wall clock, never earlier;
	// zero: at once.
	Due      time.Time
	Remember time.Duration // see QueueConfig.Remember; negative: not at all

	// The rest is set by the queue.

	Number     uint64    // order of Put; the cursor of List
	Put        time.Time // to the millisecond
	Deliveries int       // how often it was pulled, this time included
	Note       string    // of the last Nak
	State      ItemState
	Size       int // bytes of the body
}

// ItemState is where an item stands.
type ItemState string

// The states of an item.
const (
	Waiting ItemState = "waiting" // not due yet
	Ready   ItemState = "ready"
	Taken   ItemState = "taken" // pulled, and neither done nor lapsed
)

// Depth is how full a queue is.
type Depth struct {
	Waiting, Ready, Taken int
	Oldest                time.Time // put time of the oldest item; zero: empty
}

// Queues is a set of durable work queues over one packed log: concurrent
// calls, of whatever queue, share one write to the disk. What the log says is
// mirrored in memory, so that delays, priorities, cancelling and listing are
// exact. Delivery is at least once: a pulled item that is not acknowledged
// comes again when it lapses, and at once after a restart.
//
// All methods may be called at the same time. A call returns when its effect
// is on the disk. Where its error is Cancelled, Deadline or Unavailable the
// effect may still come; ids make it safe to repeat.
type Queues struct {
	log   *Log
	slack int64
	// maxBatch is the most bytes of one write of the log.
	maxBatch int
	logger   *slog.Logger
	started  time.Time
	ctx      context.Context // of the writer
	stop     context.CancelFunc
	stopped  chan struct{}
	forget   func()        // takes the set from the list of what Bus.Close ends
	wake     chan struct{} // one token: something is pending

	mu      sync.Mutex
	state   *queuesState
	configs map[string]QueueConfig
	changed map[string]chan struct{} // closed when a queue got something to pull
	pending []*request
	given   map[uint64]bool // deliveries to be noted with the next write
	failed  error           // nothing can be written any more
	cleaner cleaner

	cacheMu sync.Mutex
	cache   Message // the message read last: neighbours are pulled together
}

// OpenQueues opens the set of that name, which follows the law of lode.Name.
// It ends an earlier writer of the same set.
func (b *Bus) OpenQueues(ctx context.Context, name string, cfg QueuesConfig) (*Queues, error) {
	log, err := b.OpenLog(ctx, name)
	if err != nil {
		return nil, err
	}
	slack := cmp.Or(cfg.Slack, 16<<20)
	if b.cfg.MaxStore > 0 {
		slack = min(slack, b.cfg.MaxStore/8)
	}
	s := &Queues{
		log: log, slack: slack, maxBatch: b.maxAppend() - 8<<10, logger: b.cfg.Logger, started: time.Now(),
		stopped: make(chan struct{}), wake: make(chan struct{}, 1),
		state:   newQueuesState(cmp.Or(cfg.Memory, 64<<20)),
		configs: make(map[string]QueueConfig), changed: make(map[string]chan struct{}), given: make(map[uint64]bool),
	}
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := log.Replay(ctx, s.replay); err != nil {
		s.stop()
		return nil, err
	}
	if s.forget, err = b.onClose(s.close); err != nil {
		s.stop()
		return nil, err
	}
	s.sweep()
	go s.run()
	return s, nil
}

func (s *Queues) replay(m Message) error {
	s.state.packs.add(m.Seq, m.Size)
	for i, e := range m.Entries {
		o, err := decodeOp(e)
		if err != nil {
			return s.log.damaged(m.Seq, err)
		}
		s.state.apply(&o, place{m.Seq, i})
	}
	return nil
}

// close ends the writer; waiting calls get Unavailable.
func (s *Queues) close() {
	s.stop()
	<-s.stopped
}

// Close ends the set in this process: every call, also one that waits, gets
// Unavailable from then on, and its memory is given back. What it holds stays
// on the disk. It may be called again.
func (s *Queues) Close() error {
	s.close()
	s.forget()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = newQueuesState(0)
	s.pending, s.given, s.cleaner = nil, make(map[uint64]bool), cleaner{}
	s.cacheMu.Lock()
	defer s.cacheMu.Unlock()
	s.cache = Message{}
	return nil
}

// Configure sets the bounds of one queue from now on.
func (s *Queues) Configure(queue string, cfg QueueConfig) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.configs[queue] = cfg
}

func (s *Queues) config(queue string) QueueConfig { return s.configs[queue].withDefaults() }

// Put adds items, all of them or none, and returns how many were new: an id
// that is there already, or remembered, is passed over.
func (s *Queues) Put(ctx context.Context, items ...Item) (int, error) {
	if err := s.checkItems(items); err != nil {
		return 0, err
	}
	return s.do(ctx, &request{puts: items})
}

func (s *Queues) checkItems(items []Item) error {
	size := 0
	for i := range items {
		it := &items[i]
		if it.Queue == "" || len(it.Queue) > 256 || len(it.ID) > 256 {
			return lode.Errorf(lode.Invalid, "a queue's name has 1 to 256 bytes, an id at most 256")
		}
		size += len(it.Body) + itemCost
	}
	if size > s.maxBatch {
		return lode.Errorf(lode.TooLarge, "put %d bytes: at most %d at once", size, s.maxBatch).WithHint("store large values as blobs and put their digests")
	}
	return nil
}

// Pull takes up to n items that are ready, the most important and then the
// oldest first. If there is none it waits as long as wait for the first
// (negative: until ctx ends) and returns none if none came. Each is the
// caller's for QueueConfig.Visible.
func (s *Queues) Pull(ctx context.Context, queue string, n int, wait time.Duration) ([]*Delivery, error) {
	var timeout <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timeout = t.C
	}
	for {
		items, changed, due, err := s.tryPull(queue, n)
		if err != nil {
			return nil, err
		}
		if len(items) > 0 {
			return s.deliver(ctx, items)
		}
		if wait == 0 {
			return nil, nil
		}
		// A clock may jump: a due time is looked at again each second.
		t := time.NewTimer(min(time.Second, due))
		select {
		case <-changed:
		case <-t.C:
		case <-timeout:
			wait = 0 // one last look
		case <-s.ctx.Done():
			err = errClosed()
		case <-ctx.Done():
			err = ctxError(ctx, "pull from queue "+queue)
		}
		t.Stop()
		if err != nil {
			return nil, err
		}
	}
}

func (s *Queues) tryPull(queue string, n int) (items []*item, changed <-chan struct{}, due time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return nil, nil, 0, s.failed
	}
	q, now := s.state.queue(queue), s.now()
	items = s.state.take(q, n, s.config(queue).Visible.Milliseconds(), now)
	for _, it := range items {
		s.given[it.num] = true
	}
	if len(items) > 0 {
		s.poke()
		return items, nil, 0, nil
	}
	due = time.Hour
	if ms := q.next(now); ms >= 0 {
		due = time.Duration(ms+1) * time.Millisecond
	}
	ch := s.changed[queue]
	if ch == nil {
		ch = make(chan struct{})
		s.changed[queue] = ch
	}
	return nil, ch, due, nil
}

// notify tells waiting pulls of a queue to look again. Under mu.
func (s *Queues) notify(queue string) {
	if ch := s.changed[queue]; ch != nil {
		close(ch)
		delete(s.changed, queue)
	}
}

func (s *Queues) now() instant {
	return instant{wall: time.Now().UnixMilli(), mono: time.Since(s.started).Milliseconds()}
}

// Get returns one item with its body, whatever its state; NotFound if it is
// not in the queue (any more).
func (s *Queues) Get(ctx context.Context, queue, id string) (Item, error) {
	s.mu.Lock()
	it := s.find(queue, id)
	if it == nil && s.ctx.Err() != nil {
		s.mu.Unlock()
		return Item{}, errClosed()
	}
	if it == nil {
		s.mu.Unlock()
		return Item{}, lode.Errorf(lode.NotFound, "queue %s has no item %s", queue, id)
	}
	s.state.advance(it.q, s.now())
	out, body := it.public(), it.body
	s.mu.Unlock()
	if body != nil {
		out.Body = body
		return out, nil
	}
	var err error
	out.Body, err = s.load(ctx, it)
	return out, err
}

func (s *Queues) find(queue, id string) *item {
	if q := s.state.queues[queue]; q != nil {
		if it := q.ids[id]; it != nil && it.state < itemDone {
			return it
		}
	}
	return nil
}

// List returns up to n items of a queue with numbers above after, by number,
// without their bodies.
func (s *Queues) List(queue string, after uint64, n int) []Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.state.queues[queue]
	if q == nil {
		return nil
	}
	s.state.advance(q, s.now())
	order := q.live()
	i, _ := slices.BinarySearchFunc(order, after+1, func(it *item, num uint64) int { return cmp.Compare(it.num, num) })
	var out []Item
	for ; i < len(order) && len(out) < n; i++ {
		if order[i].state < itemDone {
			out = append(out, order[i].public())
		}
	}
	return out
}

// Remove ends an item, whoever has it; NotFound if it is not in the queue. It
// returns what the item was, without the body.
func (s *Queues) Remove(ctx context.Context, queue, id string) (Item, error) {
	s.mu.Lock()
	it := s.find(queue, id)
	if it == nil && s.ctx.Err() != nil {
		s.mu.Unlock()
		return Item{}, errClosed()
	}
	if it == nil {
		s.mu.Unlock()
		return Item{}, lode.Errorf(lode.NotFound, "queue %s has no item %s", queue, id)
	}
	out := it.public()
	s.mu.Unlock()
	_, err := s.do(ctx, &request{finish: []uint64{out.Number}})
	return out, err
}

// Purge ends every item that is in the queue now and returns their number.
func (s *Queues) Purge(ctx context.Context, queue string) (int, error) {
	total := 0
	for after := uint64(0); ; {
		items := s.List(queue, after, 10_000)
		if len(items) == 0 {
			return total, nil
		}
		r := &request{}
		for _, it := range items {
			r.finish = append(r.finish, it.Number)
		}
		if _, err := s.do(ctx, r); err != nil {
			return total, err
		}
		total += len(items)
		after = items[len(items)-1].Number
	}
}

// Depth says how full a queue is.
func (s *Queues) Depth(queue string) Depth {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.state.queues[queue]
	if q == nil {
		return Depth{}
	}
	s.state.advance(q, s.now())
	d := Depth{Waiting: q.heaps[itemWaiting].Len(), Ready: q.heaps[itemReady].Len(), Taken: q.heaps[itemTaken].Len()}
	if order := q.live(); len(order) > 0 {
		d.Oldest = time.UnixMilli(order[0].put)
	}
	return d
}

// Names lists the queues that hold something, sorted.
func (s *Queues) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name, q := range s.state.queues {
		if q.depth() > 0 {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (it *item) public() Item {
	states := [...]ItemState{itemWaiting: Waiting, itemReady: Ready, itemTaken: Taken}
	return Item{Queue: it.q.name, ID: it.id, Priority: it.priority, Due: time.UnixMilli(it.due), Remember: time.Duration(it.remember) * time.Millisecond,
		Number: it.num, Put: time.UnixMilli(it.put), Deliveries: it.deliveries, Note: it.note, State: states[it.state], Size: it.size}
}
