package telemetry

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is the node's own registry. The names are OpenTelemetry's faas.*
// metrics as they read in Prometheus; lode_* are ours.
type metrics struct {
	registry *prometheus.Registry
	handler  http.Handler

	invocations, coldstarts, errors, timeouts, netIn, netOut *prometheus.CounterVec
	duration, initial, queued, cpu, memory                   *prometheus.HistogramVec
	refused                                                  *prometheus.CounterVec
}

var (
	functionLabels = []string{"faas_namespace", "faas_name"}
	durationBounds = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}
	coarseBounds   = []float64{.0001, .001, .01, .1, 1, 10}
	memoryBounds   = []float64{1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30, 4 << 30}
)

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string, more ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append(functionLabels[:len(functionLabels):len(functionLabels)], more...))
		m.registry.MustRegister(v)
		return v
	}
	histogram := func(name, help string, bounds []float64) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: bounds}, functionLabels)
		m.registry.MustRegister(v)
		return v
	}
	m.invocations = counter("faas_invocations_total", "Invocations that went well, by what caused them.", "faas_trigger")
	m.errors = counter("faas_errors_total", "Invocations that failed, by the kind of error; deadlines are among them.", "error_type")
	m.coldstarts = counter("faas_coldstarts_total", "Invocations for which a sandbox had to be made.")
	m.timeouts = counter("faas_timeouts_total", "Invocations that met their deadline.")
	m.netIn = counter("lode_body_in_bytes_total", "Bytes of request bodies.")
	m.netOut = counter("lode_body_out_bytes_total", "Bytes of answer bodies.")
	m.duration = histogram("faas_invoke_duration_seconds", "Time from admission to the answer.", durationBounds)
	m.initial = histogram("faas_init_duration_seconds", "Time to make a sandbox.", coarseBounds)
	m.queued = histogram("faas_queue_duration_seconds", "Time before admission.", coarseBounds)
	m.cpu = histogram("faas_cpu_usage_seconds", "Processor time of an invocation.", coarseBounds)
	m.memory = histogram("faas_mem_usage_bytes", "Peak memory of an invocation's sandbox.", memoryBounds)
	m.refused = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "lode_refused_total", Help: "Answers that Lode made itself, by the kind of error."}, []string{"error_type"})
	m.registry.MustRegister(m.refused, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
	return m
}

// watch adds what telemetry knows of itself.
func (m *metrics) watch(t *Telemetry) {
	m.registry.MustRegister(prometheus.NewCounterFunc(
		prometheus.CounterOpts{Name: "lode_log_dropped_total", Help: "Log lines and call records that were not written."},
		func() float64 { return float64(t.Dropped()) }))
}

func (m *metrics) gauge(name, help string, read func() float64) error {
	return taken(name, m.registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)))
}

func (m *metrics) counter(name, help string, read func() float64) error {
	return taken(name, m.registry.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, read)))
}

func taken(name string, err error) error {
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrTaken, name, err)
	}
	return nil
}

// series are the metrics of one function, looked up once.
type series struct {
	m                                      *metrics
	ns, name                               string
	triggers                               map[string]prometheus.Counter // does not change
	coldstarts, timeouts, netIn, netOut    prometheus.Counter
	duration, initial, queued, cpu, memory prometheus.Observer

	errors sync.Map // string -> prometheus.Counter; made when first met
}

// other is the name under which functions share series when there are too
// many of them.
const other = "other"

func (m *metrics) series(key nameKey, own bool) *series {
	ns, name := string(key.ns), string(key.name)
	if !own {
		ns, name = other, other
	}
	s := &series{m: m, ns: ns, name: name, triggers: map[string]prometheus.Counter{},
		coldstarts: m.coldstarts.WithLabelValues(ns, name), timeouts: m.timeouts.WithLabelValues(ns, name),
		netIn: m.netIn.WithLabelValues(ns, name), netOut: m.netOut.WithLabelValues(ns, name),
		duration: m.duration.WithLabelValues(ns, name), initial: m.initial.WithLabelValues(ns, name),
		queued: m.queued.WithLabelValues(ns, name), cpu: m.cpu.WithLabelValues(ns, name), memory: m.memory.WithLabelValues(ns, name)}
	for trigger, faas := range faasTrigger {
		s.triggers[trigger] = m.invocations.WithLabelValues(ns, name, faas)
	}
	return s
}

// faasTrigger maps our triggers to the values of OpenTelemetry's faas.trigger.
var faasTrigger = map[string]string{
	"http": "http", "lambda": "http", "call": "other", "async": "pubsub", "schedule": "timer",
	"queue": "pubsub", "job": "datasource", "merge": "datasource",
}

func (s *series) observe(r *Record) {
	u := &r.Usage
	switch {
	case r.Kind != "":
		s.errorCounter(r.Kind).Inc()
		if r.Kind == "deadline" {
			s.timeouts.Inc()
		}
	default:
		if c := s.triggers[r.Trigger]; c != nil {
			c.Inc()
		}
	}
	if u.Cold {
		s.coldstarts.Inc()
		s.initial.Observe(r.Init.Seconds())
	}
	if u.BodyIn > 0 {
		s.netIn.Add(float64(u.BodyIn))
	}
	if u.BodyOut > 0 {
		s.netOut.Add(float64(u.BodyOut))
	}
	s.duration.Observe(r.duration().Seconds())
	s.queued.Observe(u.Queued.Seconds())
	s.cpu.Observe(u.CPU.Seconds())
	s.memory.Observe(float64(u.Memory))
}

func (s *series) errorCounter(k string) prometheus.Counter {
	if c, ok := s.errors.Load(k); ok {
		return c.(prometheus.Counter)
	}
	c := s.m.errors.WithLabelValues(s.ns, s.name, string(k))
	s.errors.Store(k, c)
	return c
}

func (m *metrics) forget(key nameKey) {
	labels := prometheus.Labels{"faas_namespace": string(key.ns), "faas_name": string(key.name)}
	for _, v := range []interface {
		DeletePartialMatch(prometheus.Labels) int
	}{m.invocations, m.coldstarts, m.errors, m.timeouts, m.netIn, m.netOut, m.duration, m.initial, m.queued, m.cpu, m.memory} {
		v.DeletePartialMatch(labels)
	}
}
