package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, cfg Config) *Telemetry {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	tel, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tel.Close(); err != nil {
			t.Error(err)
		}
	})
	return tel
}

// record is an invocation that took 5 ms.
func record(id string) *Record {
	end := time.Now()
	return &Record{ID: id, Trigger: "http", Arrived: end.Add(-5 * time.Millisecond), End: end, Status: 200, Method: "POST", Path: "/a?secret=1",
		Usage: Usage{Queued: time.Millisecond, Wall: 4 * time.Millisecond, CPU: 2 * time.Millisecond, Memory: 1 << 20, BodyIn: 10, BodyOut: 20}}
}

func scrape(t *testing.T, tel *Telemetry) string {
	t.Helper()
	rec := httptest.NewRecorder()
	tel.Metrics().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	b, err := io.ReadAll(rec.Body)
	if err != nil || rec.Code != 200 {
		t.Fatal(rec.Code, err)
	}
	return string(b)
}

func TestMetrics(t *testing.T) {
	tel := open(t, Config{Functions: 2})
	f := tel.Function("default/hello@1", "default", "hello")
	if tel.Function("default/hello@1", "default", "hello") != f {
		t.Error("a second handle for one revision")
	}
	second := tel.Function("default/hello@2", "default", "hello")
	f.Done(record("A"))
	second.Done(record("B"))
	bad := record("C")
	bad.Kind, bad.Usage.Cold, bad.Init = "deadline", true, time.Second
	f.Done(bad)
	tel.Refused("misdirected")
	if err := tel.Gauge("lode_sandboxes", "Sandboxes.", func() float64 { return 7 }); err != nil {
		t.Fatal(err)
	}
	if err := tel.Gauge("lode_sandboxes", "Sandboxes.", func() float64 { return 7 }); !errors.Is(err, ErrTaken) {
		t.Errorf("a second gauge of one name: %v", err)
	}
	text := scrape(t, tel)
	for _, want := range []string{
		`faas_invocations_total{faas_name="hello",faas_namespace="default",faas_trigger="http"} 2`,
		`faas_errors_total{error_type="deadline",faas_name="hello",faas_namespace="default"} 1`,
		`faas_timeouts_total{faas_name="hello",faas_namespace="default"} 1`,
		`faas_coldstarts_total{faas_name="hello",faas_namespace="default"} 1`,
		`faas_invoke_duration_seconds_count{faas_name="hello",faas_namespace="default"} 3`,
		`faas_invoke_duration_seconds_bucket{faas_name="hello",faas_namespace="default",le="0.0025"} 0`,
		`faas_invoke_duration_seconds_bucket{faas_name="hello",faas_namespace="default",le="0.005"} 3`,
		`faas_init_duration_seconds_sum{faas_name="hello",faas_namespace="default"} 1`,
		`faas_mem_usage_bytes_sum{faas_name="hello",faas_namespace="default"} 3.145728e+06`,
		`lode_refused_total{error_type="misdirected"} 1`, `lode_sandboxes 7`, `lode_log_dropped_total 0`, `go_goroutines`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

func TestCardinality(t *testing.T) {
	tel := open(t, Config{Functions: 2})
	for _, n := range []string{"a", "b", "c", "d"} {
		tel.Function("default/"+string(n)+"@1", "default", n).Done(record("X"))
	}
	text := scrape(t, tel)
	if !strings.Contains(text, `faas_invocations_total{faas_name="other",faas_namespace="other",faas_trigger="http"} 2`) || strings.Contains(text, `"c"`) {
		t.Error(text)
	}
	tel.Forget("default", "a")
	if strings.Contains(scrape(t, tel), `faas_name="a"`) {
		t.Error("the series of a forgotten function are still there")
	}
	tel.Function("default/e@1", "default", "e").Done(record("X"))
	if !strings.Contains(scrape(t, tel), `faas_name="other",faas_namespace="other",faas_trigger="http"} 3`) {
		t.Error("three others and one of its own are more than two functions")
	}
	if got := len(tel.Top("default")); got != 4 {
		t.Errorf("%d rows of top", got)
	}
}

func TestRecent(t *testing.T) {
	tel := open(t, Config{Recent: 4})
	f, g := tel.Function("default/f@1", "default", "f"), tel.Function("other/g@1", "other", "g")
	for _, id := range []string{"1", "2", "3", "4", "5"} {
		r := record(id)
		r.Trace = f.Begin("")
		f.Done(r)
	}
	g.Done(record("6"))
	ids := func(rs []Record) string {
		var s []string
		for _, r := range rs {
			s = append(s, r.ID)
		}
		return strings.Join(s, " ")
	}
	if got := ids(tel.Recent("default", "f", 10)); got != "5 4 3" {
		t.Errorf("recent: %s", got)
	}
	if got := ids(tel.Recent("default", "", 1)); got != "5" {
		t.Errorf("recent of the namespace: %s", got)
	}
	found := tel.Find("default", "4")
	if ids(found) != "4" || found[0].Revision != "default/f@1" {
		t.Fatalf("find: %+v", found)
	}
	if got := ids(tel.Find("", found[0].Trace.ID()[:8])); got != "4" {
		t.Errorf("find by trace: %s", got)
	}
	if got := tel.Find("other", "4"); got != nil {
		t.Errorf("found in another namespace: %v", got)
	}
	if got := tel.Find("", "1"); got != nil {
		t.Errorf("the ring of four holds a sixth: %v", got)
	}
}

func TestTimeline(t *testing.T) {
	began := time.Unix(1000, 0)
	r := Record{Arrived: began, End: began.Add(10 * time.Millisecond), Init: 3 * time.Millisecond, Kind: "crashed",
		Usage: Usage{Queued: 2 * time.Millisecond, Cold: true},
		Ops:   []Op{{Name: "fetch", Target: "example.com", Began: 6 * time.Millisecond, Took: time.Millisecond, Kind: "denied"}}}
	got := r.Timeline()
	want := []Phase{{Name: "queued", Took: 2 * time.Millisecond}, {Name: "cold", Began: 2 * time.Millisecond, Took: 3 * time.Millisecond},
		{Name: "run", Began: 5 * time.Millisecond, Took: 5 * time.Millisecond, Kind: "crashed"},
		{Name: "op:fetch example.com", Began: 6 * time.Millisecond, Took: time.Millisecond, Kind: "denied"}}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("phase %d is %+v, want %+v", i, got[i], want[i])
		}
	}
}

func TestBuckets(t *testing.T) {
	last := -1
	for us := int64(0); us < 1<<32; us += 1 + us/50 {
		d := time.Duration(us) * time.Microsecond
		b := bucket(d)
		if b < last || b > last+1 && us > 0 {
			t.Fatalf("bucket of %v is %d, after %d", d, b, last)
		}
		last = b
		if m := middle(b); us < 1<<30 && (m > d+d/4+time.Microsecond || m < d-d/4-time.Microsecond) {
			t.Fatalf("bucket %d of %v stands for %v", b, d, m)
		}
	}
}

func TestTop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tel := open(t, Config{Sandboxes: func(_ string, name string) (int, int) {
			if name == "idle" {
				return 2, 0
			}
			return 0, 1
		}})
		defer tel.Close()
		slow, quick := tel.Function("d/slow@1", "d", "slow"), tel.Function("d/quick@1", "d", "quick")
		tel.Function("d/idle@1", "d", "idle")
		tel.Function("x/x@1", "x", "x")
		time.Sleep(2 * time.Minute)
		for i := range 600 {
			r := record("A")
			r.Usage.Wall = time.Millisecond
			if i%50 == 0 {
				r.Usage.Wall, r.Kind = time.Second, "crashed"
			}
			quick.Done(r)
		}
		slow.Done(record("B"))
		top := tel.Top("d")
		if len(top) != 3 || top[0].Function != "quick" || top[2].Function != "idle" || top[2].Warm != 2 {
			t.Fatalf("top: %+v", top)
		}
		q := top[0]
		if q.Calls != 600 || q.Errors != 12 || q.P50 < 800*time.Microsecond || q.P50 > 1250*time.Microsecond || q.P99 < 800*time.Millisecond || q.P99 > 1250*time.Millisecond ||
			q.Rate < 8 || q.Rate > 10 || q.CPU < 0.015 || q.CPU > 0.02 || q.Memory != 1<<20 || q.Busy != 1 {
			t.Errorf("quick: %+v", q)
		}
		time.Sleep(80 * time.Second)
		if top = tel.Top("d"); len(top) != 3 || top[0].Calls != 0 {
			t.Errorf("after 80 s: %+v", top)
		}
		quick.Done(record("C"))
		if top = tel.Top("d"); top[0].Function != "quick" || top[0].Calls != 1 {
			t.Errorf("after one more: %+v", top)
		}
	})
}

func TestDoneAllocates(t *testing.T) {
	tel := open(t, Config{Dir: t.TempDir()})
	f := tel.Function("default/f@1", "default", "f")
	r := record("A")
	f.Done(r)
	if n := testing.AllocsPerRun(1000, func() { f.Done(r) }); n > 1 {
		t.Errorf("Done allocates %v times", n)
	}
}

func BenchmarkDone(b *testing.B) {
	tel := open(b, Config{Dir: b.TempDir()})
	f := tel.Function("default/f@1", "default", "f")
	r := record("A")
	b.ReportAllocs()
	for b.Loop() {
		r.Trace = f.Begin("")
		f.Done(r)
	}
}

func TestBadConfig(t *testing.T) {
	if _, err := Open(context.Background(), Config{Endpoint: "localhost:4318"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("endpoint without a scheme: %v", err)
	}
	if _, err := Open(context.Background(), Config{Dir: "/dev/null/logs"}); err == nil {
		t.Error("a folder below a file was made")
	}
}

func TestCloseTwice(t *testing.T) {
	tel := open(t, Config{Dir: t.TempDir()})
	if err := errors.Join(tel.Close(), tel.Close()); err != nil {
		t.Fatal(err)
	}
	f := tel.Function("default/f@1", "default", "f")
	f.Done(record("A"))
	f.Log("A", slog.LevelInfo, "late")
	if tel.Dropped() != 2 {
		t.Errorf("%d dropped after Close", tel.Dropped())
	}
	if bytes.Contains(tel.Tail(context.Background(), "", "A", 100), []byte("late")) {
		t.Error("a line after Close was kept")
	}
}
