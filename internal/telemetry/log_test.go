package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func texts(t *testing.T, tel *Telemetry, f Filter) string {
	t.Helper()
	var s []string
	for l, err := range tel.Logs(context.Background(), f) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Call != nil {
			s = append(s, fmt.Sprintf("call:%d", l.Call.Status))
			continue
		}
		s = append(s, l.Text)
	}
	return strings.Join(s, " ")
}

func TestLogs(t *testing.T) {
	dir := t.TempDir()
	tel := open(t, Config{Dir: dir})
	f, g := tel.Function("default/f@1", "default", "f"), tel.Function("other/g@2", "other", "g")
	t0 := time.Now()
	a, b := newID(t0), newID(t0.Add(time.Millisecond))
	f.Log(a, slog.LevelInfo, "one")
	f.Log(a, slog.LevelError, "two")
	g.Log(b, slog.LevelInfo, "three")
	tel.Log(Line{Time: t0.Add(-time.Hour), Namespace: "default", Function: "f", Text: "old"})
	r := record(b)
	r.Kind, r.Detail, r.Trace = "cancelled", "the client went away", g.Begin("")
	g.Done(r)
	for _, c := range []struct {
		name   string
		filter Filter
		want   string
	}{
		{"all", Filter{}, "one two three old"},
		{"calls", Filter{Calls: true, Namespace: "other"}, "three call:499"},
		{"function", Filter{Function: "f"}, "one two old"},
		{"invocation", Filter{Invocation: a}, "one two"},
		{"trace", Filter{Trace: r.Trace.ID()[:8]}, "call:499"},
		{"since", Filter{Since: t0.Add(-time.Minute)}, "one two three"},
		{"grep", Filter{Grep: "^t.*o$|old"}, "two old"},
		{"tail", Filter{Tail: 2}, "three old"},
		{"tail of few", Filter{Tail: 9, Function: "g"}, "three"},
		{"none", Filter{Namespace: "nobody"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := texts(t, tel, c.filter); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	for _, err := range tel.Logs(context.Background(), Filter{Grep: "("}) {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("grep (: %v", err)
		}
	}
	if got := string(tel.Tail(context.Background(), "default", a, 100)); got != "one\ntwo\n" {
		t.Errorf("tail %q", got)
	}
	if got := string(tel.Tail(context.Background(), "default", a, 5)); got != "two\n" {
		t.Errorf("short tail %q", got)
	}
	if err := tel.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, Config{Dir: dir})
	if got := texts(t, again, Filter{Calls: true}); got != "one two three old call:499" {
		t.Errorf("after reopening: %q", got)
	}
}

func TestTornLine(t *testing.T) {
	dir := t.TempDir()
	whole := string(appendLine(nil, &Line{Time: time.Now(), Text: "whole"}))
	if err := os.WriteFile(filepath.Join(dir, "0000000000001.ndjson"), []byte("{garbage}\n"+whole+whole[:20]), 0o600); err != nil {
		t.Fatal(err)
	}
	tel := open(t, Config{Dir: dir})
	tel.Log(Line{Time: time.Now(), Text: "next"})
	if got := texts(t, tel, Filter{}); got != "whole next" {
		t.Errorf("got %q", got)
	}
}

func TestRetention(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "0000000000001.ndjson")
	if err := os.WriteFile(old, appendLine(nil, &Line{Time: time.Unix(1, 0), Text: "ancient"}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(old, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	stranger := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(stranger, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	tel := open(t, Config{Dir: dir, LogBytes: 40 << 10, SegmentBytes: 8 << 10})
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("a segment of 1970: %v", err)
	}
	for i := range 200 {
		tel.Log(Line{Time: time.Now(), Text: fmt.Sprintf("%03d %s", i, strings.Repeat("x", 1000))})
		if i%4 == 0 {
			texts(t, tel, Filter{Tail: 1}) // makes the writer write
		}
	}
	got := texts(t, tel, Filter{Grep: "^..[09] "})
	list, err := listSegments(dir)
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, s := range list {
		total += s.size
	}
	if total > 40<<10 || len(list) < 3 || !strings.Contains(got, "199 ") || strings.Contains(got, "000 ") {
		t.Errorf("%d segments of %d bytes", len(list), total)
	}
	if _, err := os.Stat(stranger); err != nil {
		t.Error(err)
	}
	if got := texts(t, tel, Filter{Tail: 20}); strings.Count(got, "x ")+1 != 20 || !strings.HasPrefix(got, "180 ") {
		t.Errorf("the last 20 over several segments: %.40q", got)
	}
}

func TestDiskFull(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /dev/full")
	}
	tel := open(t, Config{Dir: t.TempDir()})
	tel.Log(Line{Time: time.Now(), Text: "before"})
	texts(t, tel, Filter{})
	tel.writer.tell(request{}) // nothing else runs in the goroutine until the next line
	tel.writer.segments.end()
	create := tel.writer.segments.create
	tel.writer.segments.create = func(string) (*os.File, error) { return os.OpenFile("/dev/full", os.O_WRONLY, 0) }
	tel.Log(Line{Time: time.Now(), Text: "lost"})
	if got := texts(t, tel, Filter{}); got != "before" || tel.Dropped() != 1 {
		t.Errorf("on a full disk: %q, %d dropped", got, tel.Dropped())
	}
	tel.writer.segments.create = create
	tel.Log(Line{Time: time.Now(), Text: "after"})
	if got := texts(t, tel, Filter{}); got != "before after" {
		t.Errorf("with room again: %q", got)
	}
}

func TestBufferFull(t *testing.T) {
	tel := open(t, Config{Dir: t.TempDir(), Buffer: 10, BufferBytes: 1000})
	f := tel.Function("default/f@1", "default", "f")
	f.Log("A", slog.LevelInfo, strings.Repeat("x", 2000))
	if tel.Dropped() != 1 {
		t.Errorf("%d dropped", tel.Dropped())
	}
	before := tel.Dropped()
	for range 100_000 { // faster than any disk
		f.Log("A", slog.LevelInfo, "y")
	}
	kept := int64(strings.Count(texts(t, tel, Filter{}), "y"))
	if lost := tel.Dropped() - before; lost == 0 || kept+lost != 100_000 {
		t.Errorf("%d kept and %d dropped of 100000", kept, lost)
	}
}

func TestFollow(t *testing.T) {
	tel := open(t, Config{Dir: t.TempDir()})
	f := tel.Function("default/f@1", "default", "f")
	f.Log("A", slog.LevelInfo, "0")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n := 0
	for l, err := range tel.Logs(ctx, Filter{Follow: true, Function: "f"}) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Text != fmt.Sprint(n) {
			t.Fatalf("line %d is %q", n, l.Text)
		}
		if n++; n == 50 {
			cancel()
			continue
		}
		f.Log("A", slog.LevelInfo, fmt.Sprint(n))
	}
	if n != 50 {
		t.Errorf("%d lines", n)
	}
	tel.writer.tell(request{})
	if len(tel.writer.followers) != 0 {
		t.Error("the follower is still there")
	}
}

func TestFollowEndsAtClose(t *testing.T) {
	tel := open(t, Config{})
	f := tel.Function("default/f@1", "default", "f")
	seen, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stop)
		n := 0
		for range tel.Logs(context.Background(), Filter{Follow: true, Calls: true}) {
			if n++; n == 1 {
				close(seen)
			}
		}
	}()
	for following := false; !following; {
		f.Done(record("A"))
		select {
		case <-seen:
			following = true
		case <-time.After(time.Millisecond):
		}
	}
	if err := tel.Close(); err != nil {
		t.Fatal(err)
	}
	<-stop // it ends by itself
}

func FuzzLine(f *testing.F) {
	f.Add("hello", "fn", "01K\x00\"\\", int64(1), true)
	f.Add("\xff\xfe bad \u2028 \n", "", "", int64(-5), false)
	f.Fuzz(func(t *testing.T, text, name, id string, n int64, call bool) {
		in := Line{Time: time.Unix(1_700_000_000, n%1e9), Namespace: "default", Function: string(name), Invocation: string(id), Level: slog.LevelWarn, Text: text}
		if call {
			in.Call = &Call{Trigger: "http", Path: text, Status: int(n), Wall: n, Attempt: 2}
		}
		b := appendLine(nil, &in)
		if strings.Count(string(b), "\n") != 1 || b[len(b)-1] != '\n' {
			t.Fatalf("%q is not one line", b)
		}
		out, ok := parseLine(b)
		want := strings.ToValidUTF8(strings.Map(func(r rune) rune { return r }, text), "\ufffd")
		if len(text) <= maxText && (!ok || out.Text != want || !out.Time.Equal(in.Time) || out.Level != in.Level || call && out.Call.Wall != n) {
			t.Fatalf("%q came back as %+v", b, out)
		}
	})
}

// newID is an invocation id of that time: 48 bits of milliseconds in ten
// digits of base 32, then 16 more digits.
func newID(at time.Time) string {
	const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	ms := at.UnixMilli()
	b := []byte("0000000000ABCDEFGHJKMNPQRS")
	for i := 9; i >= 0; i-- {
		b[i] = digits[ms&31]
		ms >>= 5
	}
	return string(b)
}
