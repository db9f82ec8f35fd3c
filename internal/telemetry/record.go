package telemetry

import (
	"strings"
	"sync"
	"time"
)

// Usage is what an invocation used: field for field the vocabulary's Usage, to
// which it converts.
type Usage struct {
	Queued     time.Duration
	Wall       time.Duration // from admission to the answer
	CPU        time.Duration
	Memory     int64 // peak bytes
	BodyIn     int64
	BodyOut    int64
	Cold       bool
	Clean      bool
	Operations int
	LogDropped int64
}

// Record is one invocation that ended.
type Record struct {
	ID      string
	Trace   Trace
	Trigger string
	Attempt int           // 0 = 1
	Arrived time.Time     // when it was asked for
	End     time.Time     // zero: now
	Init    time.Duration // making the sandbox, if Usage.Cold
	Usage   Usage
	Status  int    // HTTP status of the answer; 0: none was begun
	Kind    string // "" = it went well
	Detail  string // what went wrong
	Caller  string // revision of the calling function, or empty
	Method  string
	Path    string
	Ops     []Op // host operations, in the order in which they began

	// Set by Done.
	Revision  string
	Namespace string
	Function  string
}

// Op is one host operation of an invocation.
type Op struct {
	Name   string        // call, fetch, queue ...
	Target string        // callee, host, queue
	Began  time.Duration // after the invocation arrived
	Took   time.Duration
	Kind   string // "" = it went well
}

// Phase is one piece of an invocation's timeline.
type Phase struct {
	Name  string        `json:"name"`  // queued, cold, run, or op: and the operation
	Began time.Duration `json:"began"` // after the invocation arrived
	Took  time.Duration `json:"took"`
	Kind  string        `json:"kind,omitempty"` // how it failed
}

// Timeline lays the record out: queued, cold, run, and the operations beside
// run.
func (r *Record) Timeline() []Phase {
	var at time.Duration
	var ps []Phase
	if q := r.Usage.Queued; q > 0 {
		ps = append(ps, Phase{Name: "queued", Took: q})
		at = q
	}
	if r.Usage.Cold {
		ps = append(ps, Phase{Name: "cold", Began: at, Took: r.Init})
		at += r.Init
	}
	run := r.End.Sub(r.Arrived) - at
	ps = append(ps, Phase{Name: "run", Began: at, Took: max(0, run), Kind: r.Kind})
	for _, op := range r.Ops {
		name := "op:" + op.Name
		if op.Target != "" {
			name += " " + op.Target
		}
		ps = append(ps, Phase{Name: name, Began: op.Began, Took: op.Took, Kind: op.Kind})
	}
	return ps
}

// duration is the time from admission to the answer.
func (r *Record) duration() time.Duration {
	if r.Usage.Wall > 0 {
		return r.Usage.Wall
	}
	return max(0, r.End.Sub(r.Arrived)-r.Usage.Queued)
}

// ring is the last records.
type ring struct {
	mu      sync.Mutex
	records []Record
	n       uint64 // records ever added
}

func (g *ring) add(r *Record) {
	g.mu.Lock()
	g.records[g.n%uint64(len(g.records))] = *r
	g.n++
	g.mu.Unlock()
}

// newest returns at most max records that match, newest first.
func (g *ring) newest(max int, match func(*Record) bool) []Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	var found []Record
	size := uint64(len(g.records))
	for i := g.n; i > 0 && i+size > g.n && len(found) < max; i-- {
		if r := &g.records[(i-1)%size]; match(r) {
			found = append(found, *r)
		}
	}
	return found
}

// Recent returns at most n records of a function, newest first. An empty name
// means all functions of the namespace.
func (t *Telemetry) Recent(ns string, name string, n int) []Record {
	return t.ring.newest(n, func(r *Record) bool {
		return r.Namespace == ns && (name == "" || r.Function == name)
	})
}

// Find returns the records in memory of an invocation id, or of a trace id of
// which at least eight digits are given; newest first. An empty namespace
// means all.
func (t *Telemetry) Find(ns string, id string) []Record {
	lower := strings.ToLower(id)
	return t.ring.newest(len(t.ring.records), func(r *Record) bool {
		if ns != "" && r.Namespace != ns {
			return false
		}
		return r.ID == id || len(lower) >= 8 && strings.HasPrefix(r.Trace.ID(), lower)
	})
}
