package bus

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

// moverSteps are those that the mover passes, partSteps those of another node
// that takes part.
var (
	moverSteps = []string{"begun", "prepared", "copied ahead", "ahead", "frozen", "copied", "complete", "compared", "synced", "committed", "adopted"}
	partSteps  = []string{"asked to prepare", "done prepare", "asked to freeze", "done freeze", "asked to sync", "done sync", "asked to switch", "done switch"}
)

// shortSteps are those of each move that are tried where there is little time.
var shortSteps = map[string][]string{"a": {"copied ahead", "compared", "committed", "done prepare"}, "abc": {"frozen", "done sync", "adopted"}}

// trap stops a node at the first time that it reaches a step.
type trap struct {
	step   string
	sprung chan struct{}
	once   sync.Once
	bus    atomic.Pointer[Bus]
}

func newTrap(step string) *trap { return &trap{step: step, sprung: make(chan struct{})} }

// reached holds whoever comes to the step until its bus is closed: nothing
// that follows is done.
func (tr *trap) reached(step string) {
	if step != tr.step {
		return
	}
	tr.once.Do(func() {
		close(tr.sprung)
		<-tr.bus.Load().closed
	})
}

// stubborn writes the same thing until it is acknowledged, over crashes of the
// node that it writes through.
type stubborn struct {
	w     *world
	via   lode.NodeID
	stop  chan struct{}
	done  chan struct{}
	n     atomic.Int64  // acknowledged
	acked []string      // read it when done
	gap   time.Duration // longest time without an acknowledged write
}

func startStubborn(w *world, via lode.NodeID) *stubborn {
	s := &stubborn{w: w, via: via, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		last := time.Now()
		for i := 0; ; i++ {
			id := fmt.Sprintf("%06d", i)
			for {
				err := s.write(id)
				if err == nil {
					break
				}
				s.w.log.Debug("the writer", "id", id, "err", err)
				select {
				case <-s.stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
			s.gap = max(s.gap, time.Since(last))
			last = time.Now()
			s.acked = append(s.acked, id)
			s.n.Add(1)
			select {
			case <-s.stop:
				return
			default:
			}
		}
	}()
	return s
}

func (s *stubborn) write(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	s.w.mu.Lock()
	b := s.w.nodes[s.via]
	s.w.mu.Unlock()
	if b == nil {
		return errCut
	}
	tab, err := b.Table(ctx, "t")
	if err == nil {
		_, err = tab.Create(ctx, id, []byte(id))
		if lode.KindOf(err) == lode.Conflict {
			err = nil // an attempt whose answer was lost
		}
	}
	if err != nil {
		return err
	}
	q, err := b.OpenQueues(ctx, "work", QueuesConfig{})
	if err != nil {
		return err
	}
	defer q.Close()
	_, err = q.Put(ctx, Item{Queue: "q", ID: id, Body: []byte(id)})
	return err
}

// check ends the writing, and wants everything acknowledged to be there once,
// in each node's eyes.
func (s *stubborn) check(t *testing.T) {
	t.Helper()
	close(s.stop)
	<-s.done
	if len(s.acked) == 0 {
		t.Fatal("nothing was written")
	}
	for name, b := range s.w.nodes {
		tab := must(b.Table(t.Context(), "t"))(t)
		var keys []string
		for _, e := range must(tab.List(t.Context(), ""))(t) {
			keys = append(keys, e.Key)
		}
		q := must(b.OpenQueues(t.Context(), "work", QueuesConfig{}))(t)
		var items []string
		for _, it := range q.List("q", 0, 1_000_000) {
			items = append(items, it.ID)
		}
		for _, id := range s.acked {
			if !slices.Contains(keys, id) || !slices.Contains(items, id) {
				t.Fatalf("%s: %s was acknowledged and is gone", name, id)
			}
		}
		if slices.Sort(items); len(slices.Compact(slices.Clone(items))) != len(items) {
			t.Fatalf("%s: items are doubled", name)
		}
		q.Close()
	}
	t.Logf("%d writes, the longest gap %s", len(s.acked), s.gap.Round(time.Millisecond))
}

// TestMoveKilled stops the mover, or another node that takes part, at each
// step of a move, while a third node writes: nothing is lost or doubled, the
// move is completed or undone by itself, and the next one succeeds.
func TestMoveKilled(t *testing.T) {
	t.Parallel()
	long := os.Getenv("LODE_LONG") != "" // else those that differ most
	skip := func(from, step string) bool { return !long && !slices.Contains(shortSteps[from], step) }
	for _, from := range []string{"a", "abc"} {
		for _, step := range moverSteps {
			if skip(from, step) {
				continue
			}
			t.Run(from+"/mover/"+strings.ReplaceAll(step, " ", "-"), func(t *testing.T) { moveKilled(t, from, "a", step) })
		}
		for _, step := range partSteps {
			if skip(from, step) {
				continue
			}
			t.Run(from+"/member/"+strings.ReplaceAll(step, " ", "-"), func(t *testing.T) { moveKilled(t, from, "b", step) })
		}
	}
}

func moveKilled(t *testing.T, from string, victim lode.NodeID, step string) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t)
	tr := newTrap(step)
	var armed atomic.Bool
	w.trap = func(n lode.NodeID) func(string) {
		return func(step string) {
			if n == victim && armed.Load() {
				tr.reached(step)
			}
		}
	}
	w.up("a", nil)
	l := w.nodes["a"].Layout()
	for _, n := range []lode.NodeID{"b", "c", "d"} {
		w.up(n, &l)
	}
	if len(from) == 3 {
		if err := w.nodes["a"].Move(ctx, w.members("a", "b", "c")); err != nil {
			t.Fatal(err)
		}
	}
	s := startStubborn(w, "c")
	time.Sleep(50 * time.Millisecond)
	tr.bus.Store(w.nodes[victim])
	armed.Store(true)
	to := w.members("a", "b", "c")
	if len(from) == 3 {
		to = w.members("a", "b", "d")
	}
	moved := make(chan error, 1)
	mover := w.nodes["a"]
	go func() { moved <- mover.Move(ctx, to) }()
	select {
	case <-tr.sprung:
	case err := <-moved:
		t.Fatal("the step was not reached: ", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the step was not reached")
	}
	w.down(victim)
	<-moved
	w.trap = nil
	if len(from) == 3 { // two of three are there: writes go on without it
		n := s.n.Load()
		eventually(t, "writes go on", func() bool { return s.n.Load() > n })
	}
	w.up(victim, nil)
	n := s.n.Load()
	eventually(t, "writes go on", func() bool { return s.n.Load() > n })
	eventually(t, "the next move succeeds", func() bool { return w.nodes["a"].Move(ctx, to) == nil })
	s.check(t)
}
