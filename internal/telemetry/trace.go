package telemetry

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Trace is the place of an invocation in a distributed trace.
type Trace struct {
	trace        [16]byte
	span, parent [8]byte // parent is zero at the root
	flags        byte
}

// TraceOf is the place of an invocation whose ids somebody else chose.
func TraceOf(id [16]byte, span, parent [8]byte, sampled bool) Trace {
	t := Trace{trace: id, span: span, parent: parent}
	if sampled {
		t.flags = 1
	}
	return t
}

// newTrace makes a child of the W3C traceparent, or a root.
func newTrace(parent string) Trace {
	var t Trace
	if !t.parse(parent) {
		t = Trace{flags: 1}
		binary.LittleEndian.PutUint64(t.trace[:8], rand.Uint64()|1) // never all zero
		binary.LittleEndian.PutUint64(t.trace[8:], rand.Uint64())
	}
	binary.LittleEndian.PutUint64(t.span[:], rand.Uint64()|1)
	return t
}

// parse reads version "-" 32 hex "-" 16 hex "-" 2 hex; a later version may
// have more behind another hyphen.
func (t *Trace) parse(s string) bool {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" || !lowerHex(s[:2]) || !lowerHex(s[3:35]) || !lowerHex(s[36:52]) || !lowerHex(s[53:55]) ||
		s[:2] == "00" && len(s) != 55 || len(s) > 55 && s[55] != '-' {
		return false
	}
	var flags [1]byte
	_, _ = hex.Decode(t.trace[:], []byte(s[3:35])) // checked above
	_, _ = hex.Decode(t.parent[:], []byte(s[36:52]))
	_, _ = hex.Decode(flags[:], []byte(s[53:55]))
	t.flags = flags[0] & 1
	return t.trace != [16]byte{} && t.parent != [8]byte{}
}

func lowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

// ID is the trace id, 32 hexadecimal digits; "" for the zero Trace.
func (t *Trace) ID() string {
	if t.trace == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(t.trace[:])
}

// Traceparent is what the invocation passes on to what it calls.
func (t *Trace) Traceparent() string {
	var b [55]byte
	copy(b[:], "00-")
	hex.Encode(b[3:], t.trace[:])
	b[35] = '-'
	hex.Encode(b[36:], t.span[:])
	copy(b[52:], "-0")
	b[54] = '0' + t.flags&1
	return string(b[:])
}

// exporter sends a span for each invocation. A nil exporter sends none.
type exporter struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// openExporter returns nil where no endpoint is configured. The SDK reads the
// other OTEL_* variables itself (headers, compression, sampler, batches).
func openExporter(ctx context.Context, cfg *Config) (*exporter, error) {
	var opts []otlptracehttp.Option
	switch {
	case cfg.Endpoint != "":
		if !strings.HasPrefix(cfg.Endpoint, "http://") && !strings.HasPrefix(cfg.Endpoint, "https://") {
			return nil, fmt.Errorf("%w: trace endpoint %q is not an http or https URL", ErrInvalid, cfg.Endpoint)
		}
		opts = append(opts, otlptracehttp.WithEndpointURL(strings.TrimSuffix(cfg.Endpoint, "/")+"/v1/traces"))
	case os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "":
		return nil, nil
	}
	out, err := otlptracehttp.New(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: the exporter of traces: %w", ErrInvalid, err)
	}
	res := resource.NewSchemaless(attribute.String("service.name", "lode"), attribute.String("service.version", cfg.Version),
		attribute.String("service.instance.id", cfg.Node))
	if merged, err := resource.Merge(res, resource.Environment()); err == nil {
		res = merged // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(&quiet{SpanExporter: out, log: cfg.Log}), sdktrace.WithResource(res), sdktrace.WithIDGenerator(givenIDs{}))
	return &exporter{p, p.Tracer("lode")}, nil
}

// quiet reports spans that could not be sent, at most once a minute, instead of
// handing the error to the SDK's process-wide handler.
type quiet struct {
	sdktrace.SpanExporter
	log  *slog.Logger
	warn flag
}

// ExportSpans sends spans; those that it cannot send are lost.
func (q *quiet) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := q.SpanExporter.ExportSpans(ctx, spans); err != nil && q.warn.due(time.Now()) {
		q.log.Warn("traces were not sent", "err", err, "spans", len(spans))
	}
	return nil
}

var _ sdktrace.SpanExporter = (*quiet)(nil)

// givenIDs hands the SDK the ids that the invocation has used already.
type givenIDs struct{}

type traceKey struct{}

// NewIDs returns the ids of a root.
func (givenIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	t, _ := ctx.Value(traceKey{}).(*Trace)
	return t.trace, t.span
}

// NewSpanID returns the id of a child.
func (givenIDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	t, _ := ctx.Value(traceKey{}).(*Trace)
	return t.span
}

var _ sdktrace.IDGenerator = givenIDs{}

// export makes the span of r and queues it. A full queue drops it.
func (e *exporter) export(r *Record) {
	if e == nil || r.Trace.trace == [16]byte{} {
		return
	}
	ctx := context.WithValue(context.Background(), traceKey{}, &r.Trace)
	if r.Trace.parent != [8]byte{} {
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: r.Trace.trace, SpanID: r.Trace.parent, TraceFlags: trace.TraceFlags(r.Trace.flags), Remote: true}))
	}
	_, span := e.tracer.Start(ctx, r.Function, trace.WithTimestamp(r.Arrived), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attributes(r)...))
	for _, op := range r.Ops {
		span.AddEvent(op.Name, trace.WithTimestamp(r.Arrived.Add(op.Began)), trace.WithAttributes(
			attribute.String("lode.target", op.Target), attribute.Int64("lode.duration_us", op.Took.Microseconds()), attribute.String("error.type", op.Kind)))
	}
	if r.Kind != "" {
		span.SetStatus(codes.Error, r.Detail)
	}
	span.End(trace.WithTimestamp(r.End))
}

// attributes follow OpenTelemetry's semantic conventions for FaaS and HTTP.
func attributes(r *Record) []attribute.KeyValue {
	_, version, _ := strings.Cut(r.Revision, "@")
	list := []attribute.KeyValue{
		attribute.String("faas.name", r.Function), attribute.String("faas.version", version), attribute.String("faas.trigger", faasTrigger[r.Trigger]),
		attribute.String("faas.invocation_id", r.ID), attribute.Bool("faas.coldstart", r.Usage.Cold), attribute.Int64("faas.max_memory", r.Usage.Memory),
		attribute.String("lode.namespace", r.Namespace), attribute.Int("lode.attempt", max(1, r.Attempt)),
		attribute.Int64("lode.queued_us", r.Usage.Queued.Microseconds()), attribute.Int64("lode.cpu_us", r.Usage.CPU.Microseconds()),
		attribute.Int("lode.operations", r.Usage.Operations),
	}
	if r.Trigger == "http" {
		path, _, _ := strings.Cut(r.Path, "?") // a query may hold secrets
		list = append(list, attribute.String("http.request.method", r.Method), attribute.String("url.path", path), attribute.Int("http.response.status_code", r.Status))
	}
	if r.Caller != "" {
		list = append(list, attribute.String("lode.caller", r.Caller))
	}
	if r.Kind != "" {
		list = append(list, attribute.String("error.type", r.Kind))
	}
	return list
}

// close sends what is queued.
func (e *exporter) close(ctx context.Context) error {
	if e == nil {
		return nil
	}
	return e.provider.Shutdown(ctx)
}
