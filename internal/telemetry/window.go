package telemetry

import (
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"
)

// A window counts the last minute in slots of ten seconds.
const (
	slotTime = 10 * time.Second
	slots    = 7 // six whole ones and the one that fills
	// Durations fall into buckets of four for each power of two microseconds:
	// an error of at most a quarter, up to 2^31 us.
	buckets = 4 * 30
)

type window struct {
	mu    sync.Mutex
	slots []slot // made at the first call
}

type slot struct {
	epoch  int64 // time in units of slotTime; 0 = never used
	calls  int
	errors int
	cold   int
	cpu    time.Duration
	memory int64 // most
	counts [buckets]uint32
}

// bucket is the place of a duration.
func bucket(d time.Duration) int {
	us := uint64(max(0, d.Microseconds()))
	if us < 4 {
		return int(us)
	}
	exp := bits.Len64(us) - 3 // us>>exp is 4..7
	return min(4*exp+int(us>>exp), buckets-1)
}

// middle is a duration that stands for bucket i.
func middle(i int) time.Duration {
	if i < 4 {
		return time.Duration(i) * time.Microsecond
	}
	exp := i/4 - 1
	low := uint64(4+i%4) << exp
	return time.Duration(low+(uint64(1)<<exp)/2) * time.Microsecond
}

func (w *window) add(r *Record) {
	epoch := r.End.UnixNano() / int64(slotTime)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.slots == nil {
		w.slots = make([]slot, slots)
	}
	s := &w.slots[uint64(epoch)%slots]
	switch {
	case s.epoch > epoch:
		return // a record from before the window
	case s.epoch < epoch:
		*s = slot{epoch: epoch}
	}
	s.calls++
	if r.Kind != "" {
		s.errors++
	}
	if r.Usage.Cold {
		s.cold++
	}
	s.cpu += r.Usage.CPU
	s.memory = max(s.memory, r.Usage.Memory)
	s.counts[bucket(r.duration())]++
}

// sum adds up the slots of the last minute before now.
func (w *window) sum(now time.Time) slot {
	epoch := now.UnixNano() / int64(slotTime)
	var total slot
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.slots {
		s := &w.slots[i]
		if s.epoch <= epoch-slots || s.epoch > epoch {
			continue
		}
		total.calls += s.calls
		total.errors += s.errors
		total.cold += s.cold
		total.cpu += s.cpu
		total.memory = max(total.memory, s.memory)
		for b, n := range s.counts {
			total.counts[b] += n
		}
	}
	return total
}

// quantile of the durations in s; 0 if there are none.
func (s *slot) quantile(q float64) time.Duration {
	want, seen := int(q*float64(s.calls)), 0
	for i, n := range s.counts {
		if seen += int(n); seen > want {
			return middle(i)
		}
	}
	return 0
}

// Top is what one function did in the last minute.
type Top struct {
	Namespace string        `json:"namespace"`
	Function  string        `json:"function"`
	Rate      float64       `json:"rate"`   // calls a second
	Calls     int           `json:"calls"`  // in the last minute
	Errors    int           `json:"errors"` // of those
	Cold      int           `json:"cold"`   // of those
	P50       time.Duration `json:"p50"`
	P99       time.Duration `json:"p99"`
	CPU       float64       `json:"cpu"`    // cores
	Memory    int64         `json:"memory"` // most bytes of one sandbox
	Warm      int           `json:"warm"`   // sandboxes that wait
	Busy      int           `json:"busy"`   // sandboxes that run
}

// Top lists the functions that ran in the last minute or hold a sandbox, the
// busiest first. An empty namespace means all.
func (t *Telemetry) Top(ns string) []Top {
	now := time.Now()
	t.mu.RLock()
	all := make([]*stats, 0, len(t.stats))
	for key, s := range t.stats {
		if ns == "" || key.ns == ns {
			all = append(all, s)
		}
	}
	t.mu.RUnlock()
	over := spanOf(now, t.began)
	var list []Top
	for _, s := range all {
		sum := s.window.sum(now)
		row := Top{Namespace: s.key.ns, Function: s.key.name, Calls: sum.calls, Errors: sum.errors, Cold: sum.cold, Memory: sum.memory,
			P50: sum.quantile(0.5), P99: sum.quantile(0.99), Rate: float64(sum.calls) / over, CPU: sum.cpu.Seconds() / over}
		if t.cfg.Sandboxes != nil {
			row.Warm, row.Busy = t.cfg.Sandboxes(row.Namespace, row.Function)
		}
		if row.Calls > 0 || row.Warm > 0 || row.Busy > 0 {
			list = append(list, row)
		}
	}
	slices.SortFunc(list, func(a, b Top) int {
		if a.Calls != b.Calls {
			return b.Calls - a.Calls
		}
		return strings.Compare(string(a.Namespace)+"/"+string(a.Function), string(b.Namespace)+"/"+string(b.Function))
	})
	return list
}

// spanOf is how many seconds the slots at now cover; the node may be younger.
func spanOf(now, began time.Time) float64 {
	covered := time.Duration(now.UnixNano()%int64(slotTime)) + (slots-1)*slotTime
	return max(1, min(covered, now.Sub(began)).Seconds())
}
