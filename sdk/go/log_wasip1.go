package lode

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
)

// logger is slog's default handler in a guest: one line a record, text form,
// without time and level, which the host knows.
type logger struct {
	text slog.Handler
	out  *lines
}

// lines collects one record.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) { return l.buf.Write(p) }

var _ slog.Handler = (*logger)(nil)

func init() {
	out := &lines{}
	drop := func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}
	slog.SetDefault(slog.New(&logger{text: slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: drop}), out: out}))
}

func (l *logger) Enabled(context.Context, slog.Level) bool { return true }

func (l *logger) Handle(ctx context.Context, r slog.Record) error {
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	l.out.buf.Reset()
	if err := l.text.Handle(ctx, r); err != nil {
		return err
	}
	b := bytes.TrimRight(l.out.buf.Bytes(), "\n")
	hostLog(int32(r.Level), start(b), uint32(len(b)))
	return nil
}

func (l *logger) WithAttrs(a []slog.Attr) slog.Handler {
	return &logger{text: l.text.WithAttrs(a), out: l.out}
}

func (l *logger) WithGroup(name string) slog.Handler {
	return &logger{text: l.text.WithGroup(name), out: l.out}
}
