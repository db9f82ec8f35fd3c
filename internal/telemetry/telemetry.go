package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// The errors of a caller's making.
var (
	ErrInvalid = errors.New("invalid") // a bad endpoint, a bad expression
	ErrTaken   = errors.New("metric name taken")
)

// Config says what is kept and where. The zero value keeps records and metrics
// in memory, writes no log and sends no trace unless the environment has
// OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT.
type Config struct {
	Dir      string // folder of the log segments, made if missing; "": lines go to followers only
	Endpoint string // OTLP over HTTP, such as http://localhost:4318; "": from the environment
	Node     string // service.instance.id of traces
	Version  string // service.version of traces

	LogBytes     int64         // all segments together, 1 GiB
	LogAge       time.Duration // 7 days
	SegmentBytes int64         // 16 MiB; more makes retention coarser
	Buffer       int           // lines and calls that wait for the disk, 16,384; what comes more is dropped
	BufferBytes  int           // text of the lines that wait, 8 MiB
	Recent       int           // records kept in memory, 4,096
	Functions    int           // functions with metric series of their own, 1,000; the rest is counted as "other"

	// Sandboxes tells Top what stands ready for a function. nil: unknown.
	Sandboxes func(ns string, name string) (warm, busy int)
	Log       *slog.Logger // nil: slog.Default
}

func (c *Config) setDefaults() {
	c.LogBytes = orElse(c.LogBytes, 1<<30)
	c.LogAge = orElse(c.LogAge, 7*24*time.Hour)
	c.SegmentBytes = min(orElse(c.SegmentBytes, 16<<20), max(c.LogBytes/4, 1))
	c.Buffer = orElse(c.Buffer, 16<<10)
	c.BufferBytes = orElse(c.BufferBytes, 8<<20)
	c.Recent = orElse(c.Recent, 4096)
	c.Functions = orElse(c.Functions, 1000)
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

func orElse[T int | int64 | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// Telemetry is the memory of one node. It is safe for concurrent use.
type Telemetry struct {
	cfg     Config
	metrics *metrics
	traces  *exporter // nil: no traces
	writer  *writer
	ring    ring
	began   time.Time
	closing sync.Once
	failed  error

	mu    sync.RWMutex
	funcs map[string]*Func   // by revision
	stats map[nameKey]*stats // by function
}

type nameKey struct {
	ns   string
	name string
}

// Open starts the writer of the log and, if there is an endpoint, the exporter
// of traces. It fails if the folder cannot be made or the endpoint is no URL;
// an endpoint that does not answer is no failure.
func Open(ctx context.Context, cfg Config) (*Telemetry, error) {
	cfg.setDefaults()
	t := &Telemetry{cfg: cfg, metrics: newMetrics(), began: time.Now(), funcs: map[string]*Func{}, stats: map[nameKey]*stats{}}
	t.ring.records = make([]Record, cfg.Recent)
	var err error
	if t.traces, err = openExporter(ctx, &cfg); err != nil {
		return nil, err
	}
	if t.writer, err = openWriter(&cfg, t.traces); err != nil {
		t.traces.close(ctx)
		return nil, err
	}
	t.metrics.watch(t)
	return t, nil
}

// Close writes what waits, sends the last spans (for at most five seconds) and
// ends the goroutines. Records and lines that come later are dropped. It may
// be called more than once.
func (t *Telemetry) Close() error {
	t.closing.Do(func() {
		t.failed = t.writer.close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := t.traces.close(ctx); err != nil {
			t.cfg.Log.Warn("the last traces were not sent", "err", err)
		}
	})
	return t.failed
}

// Metrics answers /metrics in the formats of Prometheus.
func (t *Telemetry) Metrics() http.Handler { return t.metrics.handler }

// Dropped is how many lines and calls were not written: the buffer was full,
// or the disk.
func (t *Telemetry) Dropped() int64 { return t.writer.dropped.Load() }

// Func is the handle of one revision. Callers keep it: with it, an invocation
// looks up no name.
type Func struct {
	t     *Telemetry
	rev   string
	ns    string
	name  string
	stats *stats
}

// Function returns the handle of the revision rev ("ns/name@7").
func (t *Telemetry) Function(rev string, ns string, name string) *Func {
	t.mu.RLock()
	f := t.funcs[rev]
	t.mu.RUnlock()
	if f != nil {
		return f
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.funcs[rev]; f != nil {
		return f
	}
	key := nameKey{ns, name}
	s := t.stats[key]
	if s == nil {
		own := len(t.stats) < t.cfg.Functions
		s = &stats{key: key, series: t.metrics.series(key, own), own: own}
		t.stats[key] = s
	}
	f = &Func{t: t, rev: rev, ns: ns, name: name, stats: s}
	t.funcs[rev] = f
	return f
}

// Forget drops the series and handles of a function that was removed. Handles
// that somebody still holds go on working; what they count is not shown.
func (t *Telemetry) Forget(ns string, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := nameKey{ns, name}
	s := t.stats[key]
	if s == nil {
		return
	}
	delete(t.stats, key)
	for rev, f := range t.funcs {
		if f.stats == s {
			delete(t.funcs, rev)
		}
	}
	if s.own {
		t.metrics.forget(key)
	}
}

// Begin returns the trace of a new invocation below the caller's traceparent,
// or of a new trace if that is empty or malformed.
func (f *Func) Begin(traceparent string) Trace { return newTrace(traceparent) }

// Done records an invocation that ended. r may be used again at once; what its
// Ops point to must not change any more.
func (f *Func) Done(r *Record) {
	kept := *r
	kept.Revision, kept.Namespace, kept.Function = f.rev, f.ns, f.name
	if kept.End.IsZero() {
		kept.End = time.Now()
	}
	f.stats.series.observe(&kept)
	f.stats.window.add(&kept)
	f.t.ring.add(&kept)
	f.t.writer.addCall(&kept)
}

// Log keeps a line that the function wrote.
func (f *Func) Log(id string, level slog.Level, text string) {
	f.t.Log(Line{Time: time.Now(), Namespace: f.ns, Function: f.name, Revision: f.rev, Invocation: id, Level: level, Text: text})
}

// Log keeps a line. It never waits: without room the line is dropped.
func (t *Telemetry) Log(l Line) { t.writer.addLine(l) }

// Refused counts a request that a door turned away.
func (t *Telemetry) Refused(kind string) { t.metrics.refused.WithLabelValues(string(kind)).Inc() }

// Gauge adds a gauge to /metrics that is read when it is asked for. A name
// that is taken is an error.
func (t *Telemetry) Gauge(name, help string, read func() float64) error {
	return t.metrics.gauge(name, help, read)
}

// Counter adds a counter to /metrics that is read when it is asked for; it
// must not go down. A name that is taken is an error.
func (t *Telemetry) Counter(name, help string, read func() float64) error {
	return t.metrics.counter(name, help, read)
}

// stats is what is counted of one function, over its revisions.
type stats struct {
	key    nameKey
	series *series
	own    bool // series are not those of "other"
	window window
}

// flag is a warning that is given at most once a minute.
type flag struct{ last atomic.Int64 }

func (f *flag) due(now time.Time) bool {
	last := f.last.Load()
	return now.Unix()-last >= 60 && f.last.CompareAndSwap(last, now.Unix())
}
