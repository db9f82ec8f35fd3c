package bus

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
)

// logger passes the server's log to slog. Its notices are about its own
// start and are of use only when it is being debugged.
type logger struct {
	l      *slog.Logger
	failed func() // is told of a write that failed for good
}

var _ server.Logger = (*logger)(nil)

func (l *logger) Noticef(f string, v ...any) { l.l.Debug("bus: " + fmt.Sprintf(f, v...)) }
func (l *logger) Debugf(f string, v ...any)  {}
func (l *logger) Tracef(f string, v ...any)  {}

// Warnf passes a warning on. What the server says whenever it was killed and
// reads its files anew is no news: that is what the files are for.
func (l *logger) Warnf(f string, v ...any) {
	if strings.Contains(f, "state outdated") || strings.Contains(f, "state is outdated") || strings.Contains(f, "Recovering stream state from index") {
		l.Noticef(f, v...)
		return
	}
	l.l.Warn("bus: " + fmt.Sprintf(f, v...))
}

func (l *logger) Errorf(f string, v ...any) {
	text := fmt.Sprintf(f, v...)
	l.l.Error("bus: " + text)
	if writeFailed(text) {
		l.failed()
	}
}

func (l *logger) Fatalf(f string, v ...any) { l.l.Error("bus: fatal: " + fmt.Sprintf(f, v...)) }
