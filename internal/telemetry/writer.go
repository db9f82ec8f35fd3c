package telemetry

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// gather is how long the writer waits for a batch to fill.
	gather = 20 * time.Millisecond
	// retainEvery is how often old segments are looked for.
	retainEvery = time.Hour
)

// writer takes lines and records from the invocations and brings them to the
// disk, to followers and to the exporter, in a goroutine of its own.
type writer struct {
	log      *slog.Logger
	segments *segments // nil: no folder
	traces   *exporter
	max      int
	maxBytes int
	dropped  atomic.Int64
	full     flag

	wake chan struct{}
	ask  chan request
	quit chan struct{}
	done chan struct{}

	mu     sync.Mutex
	lines  []Line
	calls  []Record
	bytes  int // of text in lines
	closed bool

	// The goroutine's own.
	spareLines []Line
	spareCalls []Record
	buf        []byte
	waiting    int64 // lines in buf
	followers  map[*follower]struct{}
}

// request asks the writer's goroutine to write what waits, and then to add or
// remove a follower if there is one. done is closed when that has happened.
type request struct {
	add, remove *follower
	done        chan struct{}
}

// follower gets the lines that were written after it was added. Lines that
// find its buffer full are lost to it and counted.
type follower struct {
	lines chan Line
	lost  atomic.Int64
}

func openWriter(cfg *Config, traces *exporter) (*writer, error) {
	w := &writer{log: cfg.Log, traces: traces, max: cfg.Buffer, maxBytes: cfg.BufferBytes, wake: make(chan struct{}, 1), ask: make(chan request),
		quit: make(chan struct{}), done: make(chan struct{}), followers: map[*follower]struct{}{}}
	if cfg.Dir != "" {
		var err error
		if w.segments, err = openSegments(cfg); err != nil {
			return nil, err
		}
	}
	go w.run()
	return w, nil
}

// close writes what waits and ends the goroutine.
func (w *writer) close() error {
	w.mu.Lock()
	was := w.closed
	w.closed = true
	w.mu.Unlock()
	if !was {
		close(w.quit)
	}
	<-w.done
	return nil
}

func (w *writer) addLine(l Line) {
	if len(l.Text) > maxText {
		l.Text = l.Text[:maxText]
	}
	w.mu.Lock()
	if w.closed || len(w.lines) >= w.max || w.bytes+len(l.Text) > w.maxBytes {
		w.mu.Unlock()
		w.dropped.Add(1)
		return
	}
	first := len(w.lines)+len(w.calls) == 0
	w.lines = append(w.lines, l)
	w.bytes += len(l.Text)
	w.mu.Unlock()
	if first {
		w.rouse()
	}
}

func (w *writer) addCall(r *Record) {
	w.mu.Lock()
	if w.closed || len(w.calls) >= w.max {
		w.mu.Unlock()
		w.dropped.Add(1)
		return
	}
	first := len(w.lines)+len(w.calls) == 0
	w.calls = append(w.calls, *r)
	w.mu.Unlock()
	if first {
		w.rouse()
	}
}

func (w *writer) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *writer) run() {
	defer close(w.done)
	hourly := time.NewTicker(retainEvery)
	defer hourly.Stop()
	pause := time.NewTimer(gather)
	pause.Stop()
	defer pause.Stop()
	for {
		select {
		case <-w.wake:
			pause.Reset(gather) // the batch goes out when it is over
		case <-pause.C:
			w.batch()
		case q := <-w.ask:
			w.batch()
			w.answer(q)
		case now := <-hourly.C:
			if w.segments != nil {
				w.warn(w.segments.retain(now), 0)
			}
		case <-w.quit:
			w.batch()
			if w.segments != nil {
				w.segments.end()
			}
			for f := range w.followers {
				close(f.lines)
			}
			return
		}
	}
}

func (w *writer) answer(q request) {
	if q.add != nil {
		w.followers[q.add] = struct{}{}
	}
	if q.remove != nil {
		delete(w.followers, q.remove)
	}
	close(q.done)
}

// tell sends a request to the goroutine and waits; false: it has ended.
func (w *writer) tell(q request) bool {
	q.done = make(chan struct{})
	select {
	case w.ask <- q:
		<-q.done
		return true
	case <-w.done:
		return false
	}
}

// batch writes all that waits. The lines of an invocation come before its
// call.
func (w *writer) batch() {
	w.mu.Lock()
	lines, calls := w.lines, w.calls
	w.lines, w.calls, w.bytes = w.spareLines[:0], w.spareCalls[:0], 0
	w.mu.Unlock()
	for i := range lines {
		w.put(&lines[i])
	}
	for i := range calls {
		w.traces.export(&calls[i])
		if w.segments != nil || len(w.followers) > 0 {
			l := calls[i].line()
			w.put(&l)
		}
	}
	w.flush()
	clear(lines)
	clear(calls)
	w.spareLines, w.spareCalls = lines, calls
}

// flushAt is how many bytes of lines go to the disk in one write.
const flushAt = 256 << 10

func (w *writer) put(l *Line) {
	for f := range w.followers {
		select {
		case f.lines <- *l:
		default:
			f.lost.Add(1)
		}
	}
	if w.segments == nil {
		return
	}
	w.buf = appendLine(w.buf, l)
	w.waiting++
	if len(w.buf) >= flushAt {
		w.flush()
	}
}

func (w *writer) flush() {
	if len(w.buf) == 0 {
		return
	}
	w.warn(w.segments.write(time.Now(), w.buf), w.waiting)
	w.waiting = 0
	if w.buf = w.buf[:0]; cap(w.buf) > 4*flushAt {
		w.buf = nil
	}
}

// warn counts lines that a full or broken disk refused, and says so now and
// then. The node goes on.
func (w *writer) warn(err error, lost int64) {
	if err == nil {
		return
	}
	w.dropped.Add(lost)
	if w.full.due(time.Now()) {
		w.log.Warn("log lines are dropped", "err", err, "dropped", w.dropped.Load())
	}
}
