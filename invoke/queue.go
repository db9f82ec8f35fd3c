package invoke

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/bus"
)

const (
	maxDelay       = 365 * 24 * time.Hour // how far ahead a message may be put
	maxKey         = 200                  // bytes of a message's key
	defaultDeliver = 5
	defaultVisible = 30 * time.Second
	defaultKeep    = 7 * 24 * time.Hour
	defaultBatch   = 10
	deadSuffix     = "-dead"
)

// A message is an item of the queue "queue/NS/NAME": its body is
//
//	u32 n   little-endian, length of the JSON
//	JSON    an envelope
//	body    the message's
type envelope struct {
	Type string    `json:"type,omitempty"` // content type
	Time time.Time `json:"time"`           // when it was put
	From string    `json:"from,omitempty"` // dead letters: the queue or function that gave up
	Why  string    `json:"why,omitempty"`  // dead letters: the last error
}

func messageQueue(ns lode.Namespace, name lode.Name) string {
	return "queue/" + string(ns) + "/" + string(name)
}

func encodeMessage(e envelope, body []byte) []byte {
	j, err := json.Marshal(e)
	if err != nil {
		j = []byte("{}") // strings and a time always marshal
	}
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(j)+len(body)), uint32(len(j)))
	return append(append(b, j...), body...)
}

func decodeMessage(b []byte) (e envelope, body []byte, err error) {
	if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
		return e, nil, lode.Errorf(lode.Damaged, "an item of %d bytes is no message", len(b))
	}
	n := 4 + int(binary.LittleEndian.Uint32(b))
	if err := json.Unmarshal(b[4:n], &e); err != nil {
		return e, nil, lode.Errorf(lode.Damaged, "a message is not readable: %w", err)
	}
	return e, b[n:], nil
}

// queues are the declared queues: their messages and consumers.
type queues struct {
	k          *Keeper
	intake     context.Context
	stopIntake context.CancelFunc
	wake       chan struct{}

	mu        sync.Mutex
	consumers map[consumerKey]*consumer
}

type consumerKey struct {
	target
	queue lode.Name
}

// consumer runs one function on the messages of one queue.
type consumer struct {
	consumerKey
	k    *Keeper
	rev  atomic.Pointer[lode.Revision] // the live one, for size and wait
	stop context.CancelFunc
}

func newQueues(k *Keeper) *queues {
	q := &queues{k: k, wake: make(chan struct{}, 1), consumers: make(map[consumerKey]*consumer)}
	q.intake, q.stopIntake = context.WithCancel(k.base)
	k.pulls.Go(q.run)
	return q
}

// poke asks for a look at the catalog.
func (q *queues) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queues) run() {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		select {
		case <-q.wake:
			q.reconcile(&running)
		case <-q.intake.Done():
			return
		}
	}
}

// reconcile begins and ends consumers as the catalog asks. A consumer that
// ends finishes its batches; messages that nobody consumes wait.
func (q *queues) reconcile(running *sync.WaitGroup) {
	want := make(map[consumerKey]*lode.Revision)
	for rev := range q.k.s.cfg.Catalog.Functions() {
		if c := rev.Function.Queue; c != nil && c.Queue != "" {
			want[consumerKey{target{rev.Namespace, rev.Name}, c.Queue}] = rev
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for k, c := range q.consumers {
		if want[k] == nil {
			c.stop()
			delete(q.consumers, k)
		}
	}
	for k, rev := range want {
		q.configure(k.ns, k.queue)
		if c := q.consumers[k]; c != nil {
			c.rev.Store(rev)
			continue
		}
		ctx, stop := context.WithCancel(q.intake)
		c := &consumer{consumerKey: k, k: q.k, stop: stop}
		c.rev.Store(rev)
		q.consumers[k] = c
		running.Go(func() {
			defer stop()
			c.run(ctx)
		})
	}
}

// spec is the declared queue; that of a queue of dead letters is the default.
func (q *queues) spec(ns lode.Namespace, name lode.Name) (lode.Queue, error) {
	spec, err := q.k.s.cfg.Catalog.Queue(ns, name)
	if base, dead := strings.CutSuffix(string(name), deadSuffix); err != nil && dead {
		if _, e := q.k.s.cfg.Catalog.Queue(ns, lode.Name(base)); e == nil {
			spec, err = lode.Queue{}, nil
		}
	}
	spec.Keep = orDefault(spec.Keep, defaultKeep)
	spec.Deliver = orDefault(spec.Deliver, defaultDeliver)
	spec.Visible = orDefault(spec.Visible, defaultVisible)
	return spec, err
}

func (q *queues) configure(ns lode.Namespace, name lode.Name) (lode.Queue, error) {
	spec, err := q.spec(ns, name)
	q.k.cfg.Queues.Configure(messageQueue(ns, name), bus.QueueConfig{Max: int(spec.Max), Visible: spec.Visible, Keep: spec.Keep, Remember: keepKeys})
	return spec, err
}

// run hands out batches until ctx ends, then waits for those that run.
func (c *consumer) run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	var under atomic.Int64
	ended := make(chan struct{}, 1)
	for {
		for under.Load() >= int64(c.width()) {
			if !waitFor(ctx, ended, callPause) {
				return
			}
		}
		ds, err := c.pull(ctx)
		if ctx.Err() != nil && len(ds) == 0 {
			return
		}
		if err != nil {
			c.k.cfg.Logger.Error("messages cannot be pulled", "queue", c.queue, "function", c.target.String(), "err", err)
			pause(ctx, callPause)
		}
		if len(ds) == 0 {
			continue
		}
		under.Add(1)
		running.Go(func() {
			c.batch(ds)
			under.Add(-1)
			select {
			case ended <- struct{}{}:
			default:
			}
		})
	}
}

// width is how many batches run at once: as many as the nodes have slots, and
// no more than the function may be scaled to.
func (c *consumer) width() int {
	w := c.k.s.gate.slots
	if sp := c.k.s.spread; sp != nil {
		w *= max(1, len(sp.peers.Nodes()))
	}
	if l := &c.rev.Load().Function.Limits; l.ScaleMax > 0 {
		w = min(w, l.ScaleMax*max(1, l.Each))
	}
	return w
}

// pull gets a batch: what is there, and within Wait what comes.
func (c *consumer) pull(ctx context.Context) ([]Delivery, error) {
	want := *c.rev.Load().Function.Queue
	size, queue := orDefault(want.Size, defaultBatch), messageQueue(c.ns, c.queue)
	ds, err := c.k.cfg.Queues.Pull(ctx, queue, size, time.Minute)
	for until := time.Now().Add(want.Wait); err == nil && len(ds) > 0 && len(ds) < size; {
		left := time.Until(until)
		if left <= 0 {
			break
		}
		var more []Delivery
		if more, err = c.k.cfg.Queues.Pull(ctx, queue, size-len(ds), left); len(more) == 0 {
			return ds, nil // the time is over, or ctx; an error comes again
		}
		ds = append(ds, more...)
	}
	return ds, err
}

// message is one of a batch, as the guest reads it.
type message struct {
	ID      string    `json:"id"`
	Attempt int       `json:"attempt"`
	Time    time.Time `json:"time"`
	Type    string    `json:"type,omitempty"`
	From    string    `json:"from,omitempty"`
	Why     string    `json:"why,omitempty"`
	Body    []byte    `json:"body"`
}

// batch runs the function on what was pulled, in as many invocations as the
// limit of its body asks for.
func (c *consumer) batch(ds []Delivery) {
	spec, _ := c.k.queues.spec(c.ns, c.queue)
	for _, d := range ds {
		defer extending(d, spec.Visible)()
	}
	limit := int64(defaultBody)
	if rev, err := c.k.s.cfg.Catalog.Resolve(c.ns, c.name, "", 0); err == nil {
		limit = orDefault(rev.Function.Limits.Body, defaultBody)
	}
	for len(ds) > 0 {
		n, size := 0, int64(256)
		for n < len(ds) {
			size += int64(len(ds[n].Work().Body))*4/3 + 512
			if n > 0 && size > limit {
				break
			}
			n++
		}
		c.invoke(ds[:n], spec.Deliver)
		ds = ds[n:]
	}
}

// invoke runs one invocation and settles its messages.
func (c *consumer) invoke(ds []Delivery, deliver int) {
	retry := c.rev.Load().Function.Retry
	var ready []Delivery
	var ms []message
	for _, d := range ds {
		it := d.Work()
		attempts, _ := counted(it)
		e, body, err := decodeMessage(it.Body)
		switch {
		case err != nil:
			c.settle(d, deliver, deliver, 0, retry, lode.AsError(err))
		case attempts > deliver+extraAttempts:
			c.settle(d, attempts, deliver, 0, retry, lode.Errorf(lode.Unavailable, "the node stopped during each of %d deliveries", attempts-1))
		default:
			ready = append(ready, d)
			ms = append(ms, message{ID: it.ID, Attempt: attempts, Time: e.Time, Type: e.Type, From: e.From, Why: e.Why, Body: body})
		}
	}
	if len(ready) == 0 {
		return
	}
	again, err := c.call(ms)
	if c.k.base.Err() != nil && err != nil {
		return // cut short: they come again
	}
	for i, d := range ready {
		n := ms[i].Attempt
		switch {
		case err != nil && notStarted(err):
			_, free := counted(d.Work())
			c.logged(d.Nak(c.k.base, soon(free), noteOf(err, free+1)), d)
		case err != nil && !retryable(err.Kind) && err.Kind != lode.NotFound && err.Kind != lode.Gone:
			c.settle(d, deliver, deliver, 0, retry, err)
		case err != nil:
			c.settle(d, n, deliver, pauseAfter(retry, n, err), retry, err)
		case again[ms[i].ID]:
			c.settle(d, n, deliver, pauseAfter(retry, n, nil), retry, lode.Errorf(lode.Crashed, "%s asked for it again", c.target))
		default:
			c.logged(d.Ack(c.k.base), d)
		}
	}
}

// call invokes the function; again are the messages that it wants once more.
func (c *consumer) call(ms []message) (again map[string]bool, failed *lode.Error) {
	body, err := json.Marshal(struct {
		Queue    lode.Name `json:"queue"`
		Messages []message `json:"messages"`
	}{c.queue, ms})
	if err != nil {
		return nil, lode.AsError(err)
	}
	ans := &lode.Buffered{}
	_, err = c.k.s.run(c.k.base, &lode.Request{Namespace: c.ns, Function: c.name, Trigger: lode.TriggerQueue, Body: body,
		Head: []lode.Pair{{Key: "content-type", Value: "application/json"}}}, ans, true)
	if err != nil {
		return nil, lode.AsError(err)
	}
	if ans.Status >= 400 { // nobody else would look at it
		return nil, lode.Errorf(lode.Crashed, "%s answered with the status %d", c.target, ans.Status)
	}
	var answer struct {
		Retry []string `json:"retry"`
	}
	if json.Unmarshal(ans.Msg.Body, &answer) == nil && len(answer.Retry) > 0 {
		again = make(map[string]bool, len(answer.Retry))
		for _, id := range answer.Retry {
			again[id] = true
		}
	}
	return again, nil
}

// settle gives a message back after its n-th failed delivery, to come again
// after wait, or makes it a dead letter.
func (c *consumer) settle(d Delivery, n, deliver int, wait time.Duration, retry lode.Retry, why *lode.Error) {
	_, free := counted(d.Work())
	if n < deliver {
		c.logged(d.Nak(c.k.base, wait, noteOf(why, free)), d)
		return
	}
	dead := cmp.Or(retry.Dead, lode.Name(string(c.queue)+deadSuffix))
	if dead == c.queue || strings.HasSuffix(string(c.queue), deadSuffix) && retry.Dead == "" {
		// Dead letters have nowhere to go: they stay, and come back slowly.
		c.logged(d.Nak(c.k.base, orDefault(retry.Max, defaultMax), noteOf(why, free)), d)
		return
	}
	c.logged(d.Ack(c.k.base, c.k.queues.letter(c.ns, dead, d.Work(), string(c.queue), why)), d)
}

// letter is the dead letter of an item, for the queue dead.
func (q *queues) letter(ns lode.Namespace, dead lode.Name, it *bus.Item, from string, why *lode.Error) bus.Item {
	_, _ = q.configure(ns, dead) // it need not be declared
	body := it.Body
	if e, b, err := decodeMessage(it.Body); err == nil {
		e.From, e.Why = from, noteOf(why, 0)
		body = encodeMessage(e, b)
	}
	return bus.Item{Queue: messageQueue(ns, dead), ID: it.ID, Body: body, Remember: -1}
}

func (c *consumer) logged(err error, d Delivery) {
	if err != nil && c.k.base.Err() == nil {
		c.k.cfg.Logger.Warn("a message could not be settled; it comes again", "queue", c.queue, "message", d.Work().ID, "err", err)
	}
}

// deadLetter is the message that tells of a failed asynchronous invocation,
// where its function names a queue for that.
func (c *calls) deadLetter(r *record) []bus.Item {
	rev, err := c.k.s.cfg.Catalog.Resolve(r.Work.Namespace, r.Work.Function, r.Work.Alias, 0)
	if err != nil || rev.Function.Retry.Dead == "" {
		return nil
	}
	body, err := getChunks(c.k.base, c.bodies, requestPrefix(r.Work.key()), r.Body, r.Work.Chunks)
	if err != nil || len(body) > bus.MaxAppend/2 {
		c.k.cfg.Logger.Warn("a dead letter goes without its body", "id", r.Work.ID, "bytes", len(body), "err", err)
		body = nil
	}
	dead := rev.Function.Retry.Dead
	_, _ = c.k.queues.configure(r.Work.Namespace, dead)
	req := lode.Message{Head: r.Work.Head}
	e := envelope{Type: req.Get("content-type"), Time: r.Work.Created, From: string(r.Work.Function), Why: noteOf(r.Error, 0)}
	return []bus.Item{{Queue: messageQueue(r.Work.Namespace, dead), ID: r.Work.itemID(), Body: encodeMessage(e, body), Remember: -1}}
}
