package bus

import (
	"context"
	"time"

	"lode"
)

// maxNote is the most bytes of a note; the rest is cut.
const maxNote = 1024

// Delivery is an item that was pulled and is the caller's for a while.
type Delivery struct {
	Item
	s *Queues
}

// Ack ends the item and puts others in the same write: both happen or neither
// does. That is how an item moves to a queue of dead letters, and how a step
// hands over to the next. To acknowledge what somebody else has ended is no
// error, and then nothing is put.
func (d *Delivery) Ack(ctx context.Context, then ...Item) error {
	if err := d.s.checkItems(then); err != nil {
		return err
	}
	_, err := d.s.do(ctx, &request{finish: []uint64{d.Number}, puts: then, onlyIfLive: d.Number})
	return err
}

// Nak gives the item back, to come again after delay (rounded up to the
// millisecond), with a note of why. Precondition: the delivery has lapsed and
// the item is not the caller's any more.
func (d *Delivery) Nak(ctx context.Context, delay time.Duration, note string) error {
	if len(note) > maxNote {
		note = note[:maxNote]
	}
	due := ceilMilli(time.Now().Add(max(0, delay)))
	_, err := d.s.do(ctx, &request{later: &op{kind: opLater, num: d.Number, due: due, note: note}, deliveries: d.Deliveries})
	return err
}

// Extend keeps the item the caller's for another while from now. Precondition:
// it has lapsed. It is not stored: a restart gives the item back anyway.
func (d *Delivery) Extend(visible time.Duration) error {
	s := d.s
	s.mu.Lock()
	defer s.mu.Unlock()
	it := s.state.items[d.Number]
	if it == nil || it.state != itemTaken || it.deliveries != d.Deliveries {
		return lapsed(d.ID)
	}
	it.q.moveTo(it, itemGone)
	it.until = s.now().mono + visible.Milliseconds()
	it.q.moveTo(it, itemTaken)
	s.notify(it.q.name) // a pull may be waiting for another moment
	return nil
}

func lapsed(id string) error {
	return lode.Errorf(lode.Precondition, "the delivery of item %s has lapsed or was ended", id)
}

// ceilMilli is t in milliseconds, rounded up: a due time must not be early.
func ceilMilli(t time.Time) int64 { return t.Add(time.Millisecond - 1).UnixMilli() }

// deliver loads the bodies of items just taken.
func (s *Queues) deliver(ctx context.Context, items []*item) ([]*Delivery, error) {
	out := make([]*Delivery, 0, len(items))
	s.mu.Lock()
	bodies := make([][]byte, len(items))
	for i, it := range items {
		out = append(out, &Delivery{Item: it.public(), s: s})
		bodies[i] = it.body
	}
	s.mu.Unlock()
	for i, it := range items {
		if bodies[i] == nil {
			b, err := s.load(ctx, it)
			if lode.KindOf(err) == lode.NotFound {
				b = []byte{} // ended meanwhile: the caller's Ack will find out
			} else if err != nil {
				s.release(items)
				return nil, err
			}
			bodies[i] = b
		}
		out[i].Body = bodies[i]
	}
	return out, nil
}

// release makes taken items ready again.
func (s *Queues) release(items []*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range items {
		if it.state == itemTaken {
			it.q.moveTo(it, itemReady)
			s.notify(it.q.name)
		}
	}
}

// load reads a body from the log. Cleaning may move the item while it is being
// read: then the new place is read.
func (s *Queues) load(ctx context.Context, it *item) ([]byte, error) {
	for {
		s.mu.Lock()
		at, live := it.at, it.state < itemDone
		s.mu.Unlock()
		if !live {
			return nil, lode.Errorf(lode.NotFound, "item %s has ended", it.id)
		}
		o, err := s.readOp(ctx, at)
		if err == nil && o.num == it.num && o.kind == opPut {
			return o.body, nil
		}
		s.mu.Lock()
		moved := it.at != at || it.state >= itemDone
		s.mu.Unlock()
		if !moved {
			if err == nil {
				err = s.log.damaged(at.seq, lode.Errorf(lode.Damaged, "entry %d is not item %d", at.entry, it.num))
			}
			if lode.KindOf(err) == lode.NotFound {
				err = s.log.damaged(at.seq, lode.Errorf(lode.Damaged, "the message of item %s is missing", it.id))
			}
			return nil, err
		}
	}
}

func (s *Queues) readOp(ctx context.Context, at place) (op, error) {
	s.cacheMu.Lock()
	m := s.cache
	s.cacheMu.Unlock()
	if m.Seq != at.seq {
		var err error
		if m, err = s.log.Read(ctx, at.seq); err != nil {
			return op{}, err
		}
		s.cacheMu.Lock()
		s.cache = m
		s.cacheMu.Unlock()
	}
	if at.entry >= len(m.Entries) {
		return op{}, s.log.damaged(at.seq, lode.Errorf(lode.Damaged, "there is no entry %d", at.entry))
	}
	return decodeOp(m.Entries[at.entry])
}
