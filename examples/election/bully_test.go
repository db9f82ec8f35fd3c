package main

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// world carries letters in any order, but in order for each pair, and lets
// time-outs pass whenever it likes.
type world struct {
	members []Bully
	lines   map[[2]int][]Message
	timers  map[int]Stage
	rand    *rand.Rand
	early   int // time-outs that may pass while letters are on their way
}

func newWorld(n int, seed uint64) *world {
	w := &world{lines: map[[2]int][]Message{}, timers: map[int]Stage{}, rand: rand.New(rand.NewPCG(seed, 1))}
	for rank := range n {
		w.members = append(w.members, Bully{Rank: rank, Members: n, TimeoutMS: 1, Leader: nobody})
	}
	return w
}

func (w *world) do(rank int, s Step) {
	if s.Rest {
		delete(w.timers, rank)
	}
	if s.WaitMS > 0 {
		w.timers[rank] = w.members[rank].Stage
	}
	for _, l := range s.Letters {
		pair := [2]int{rank, l.To}
		w.lines[pair] = append(w.lines[pair], l.Message)
	}
}

// step does one thing of those that can be done, and reports false when there
// is nothing.
func (w *world) step() bool {
	var pairs [][2]int
	for from := range w.members {
		for to := range w.members {
			if len(w.lines[[2]int{from, to}]) > 0 {
				pairs = append(pairs, [2]int{from, to})
			}
		}
	}
	early := len(w.timers) > 0 && w.early > 0 && w.rand.IntN(20) == 0
	if len(pairs) > 0 && !early {
		p := pairs[w.rand.IntN(len(pairs))]
		m := w.lines[p][0]
		w.lines[p] = w.lines[p][1:]
		w.do(p[1], w.members[p[1]].hear(m))
		return true
	}
	for _, in := range []Stage{asked, promised} { // the shorter ones pass first
		for rank := range w.members {
			if w.timers[rank] != in {
				continue
			}
			w.early--
			delete(w.timers, rank)
			w.do(rank, w.members[rank].late(w.members[rank].Round, in))
			return true
		}
	}
	return len(pairs) > 0
}

// TestHighestWins lets groups of many sizes elect, whoever notices, with
// messages and time-outs in any order.
func TestHighestWins(t *testing.T) {
	for _, early := range []int{0, 3, 30} {
		for _, n := range []int{2, 3, 7, 12} {
			for seed := range uint64(20) {
				t.Run(fmt.Sprintf("%d/early=%d/%d", n, early, seed), func(t *testing.T) {
					w := newWorld(n, seed)
					w.early = early
					w.members[n-1].Down = true
					for range 1 + w.rand.IntN(3) {
						rank := w.rand.IntN(n - 1)
						w.do(rank, w.members[rank].notice(1))
					}
					for steps := 0; w.step(); steps++ {
						if steps > 50_000 {
							t.Fatal("they do not come to rest")
						}
					}
					for _, m := range w.members[:n-1] {
						if m.Leader != n-2 {
							t.Errorf("%d follows %d, not %d", m.Rank, m.Leader, n-2)
						}
					}
				})
			}
		}
	}
}

// TestCounts holds the numbers of messages to those of the page.
func TestCounts(t *testing.T) {
	const n = 12
	for notice, want := range map[int]Count{n - 2: {1, 0, n - 2}, 0: {n * (n - 1) / 2, (n - 1) * (n - 2) / 2, n - 2}} {
		w := newWorld(n, 1)
		w.members[n-1].Down = true
		w.do(notice, w.members[notice].notice(1))
		for w.step() {
		}
		got := Count{}
		for _, m := range w.members {
			got = got.add(m.Sent, 1)
		}
		if got != want {
			t.Errorf("%d noticed: %+v, want %+v", notice, got, want)
		}
	}
}
