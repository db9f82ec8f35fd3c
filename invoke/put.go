package invoke

import (
	"cmp"
	"context"
	"time"

	"lode"
	"lode/bus"
)

// Put is a message to be put into a queue. Its JSON is what travels between
// nodes, before the body.
type Put struct {
	Namespace lode.Namespace `json:"namespace"`
	Queue     lode.Name      `json:"queue"`
	ID        string         `json:"id,omitempty"`    // made by the sender; "": one is made
	Key       string         `json:"key,omitempty"`   // if not empty it is the id
	Delay     time.Duration  `json:"delay,omitempty"` // ns
	Type      string         `json:"type,omitempty"`  // content type
	Body      []byte         `json:"-"`               // not kept
	// Repeats: the sender may put it again under the same ID, which is passed
	// over for a minute after the message has ended.
	Repeats bool `json:"repeats,omitempty"`
}

// rememberPut is for how long the id of a message is remembered whose sender
// may repeat itself: longer than it tries.
const rememberPut = time.Minute

// PutQueue appends a message durably to a declared queue; see
// Service.PutQueue.
func (k *Keeper) PutQueue(ctx context.Context, p Put) (id string, err error) {
	if len(p.Key) > maxKey || len(p.ID) > maxKey || p.Delay < 0 || p.Delay > maxDelay {
		return "", lode.Errorf(lode.Invalid, "a message's key has at most %d bytes, its delay is from 0 to %s", maxKey, maxDelay)
	}
	if _, err := k.queues.configure(p.Namespace, p.Queue); err != nil {
		return "", err
	}
	now := k.cfg.Now()
	it := bus.Item{Queue: messageQueue(p.Namespace, p.Queue), ID: cmp.Or(p.Key, p.ID, string(lode.NewInvocationID(now))),
		Body: encodeMessage(envelope{Type: p.Type, Time: now.UTC()}, p.Body)}
	if p.Delay > 0 {
		it.Due = time.Now().Add(p.Delay)
	}
	switch {
	case p.Key == "" && p.Repeats:
		it.Remember = rememberPut
	case p.Key == "":
		it.Remember = -1
	}
	return it.ID, k.bounded(ctx, "put a message into "+string(p.Queue), func(ctx context.Context) error {
		_, err := k.cfg.Queues.Put(ctx, it)
		return err
	})
}

// QueueState is how full a queue is. Its JSON is what travels between nodes.
type QueueState struct {
	Depth    int           `json:"depth"`     // messages waiting, those with a delay too
	InFlight int           `json:"in_flight"` // handed out, not yet acknowledged
	Dead     int           `json:"dead"`      // in its queue of dead letters
	Oldest   time.Duration `json:"oldest"`    // age of the oldest message, ns
	// Consumers are the functions that consume it.
	Consumers []lode.Name `json:"consumers,omitempty"`
}

// QueueState tells how full a queue is. The queue need not be declared.
func (k *Keeper) QueueState(_ context.Context, ns lode.Namespace, name lode.Name) (out QueueState, err error) {
	if err := k.gone(); err != nil {
		return out, err
	}
	d := k.cfg.Queues.Depth(messageQueue(ns, name))
	out.Depth, out.InFlight = d.Waiting+d.Ready, d.Taken
	if !d.Oldest.IsZero() {
		out.Oldest = max(0, k.cfg.Now().Sub(d.Oldest))
	}
	k.queues.mu.Lock()
	defer k.queues.mu.Unlock()
	dead := lode.Name(string(name) + deadSuffix)
	for key, c := range k.queues.consumers {
		if key.ns == ns && key.queue == name {
			out.Consumers = append(out.Consumers, key.name)
			dead = cmp.Or(c.rev.Load().Function.Retry.Dead, dead)
		}
	}
	if dead != name {
		d = k.cfg.Queues.Depth(messageQueue(ns, dead))
		out.Dead = d.Waiting + d.Ready + d.Taken
	}
	return out, nil
}
