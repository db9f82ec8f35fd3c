package bus

import (
	"fmt"
	"log/slog"
	"slices"
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

// expected are reports of what goes on by itself: files that are read anew
// after a kill, copies that are completed, members that come and go, and the
// one address that is meant to lead nowhere (server.go).
var expected = []string{"state outdated", "state is outdated", "Recovering stream state from index", "Metalayer blocking snapshot",
	"Catchup for stream", "has not established contact with a meta leader", "Detected another leader with higher term",
	"Error flushing", "127.0.0.1:1:", "system account not setup", "Error trying to connect to route"}

func isExpected(text string) bool {
	return slices.ContainsFunc(expected, func(part string) bool { return strings.Contains(text, part) })
}

func (l *logger) Warnf(f string, v ...any) {
	text := fmt.Sprintf(f, v...)
	if isExpected(text) {
		l.l.Debug("bus: " + text)
		return
	}
	l.l.Warn("bus: " + text)
}

func (l *logger) Errorf(f string, v ...any) {
	text := fmt.Sprintf(f, v...)
	if isExpected(text) {
		l.l.Debug("bus: " + text)
		return
	}
	l.l.Error("bus: " + text)
	if writeFailed(text) {
		l.failed()
	}
}

func (l *logger) Fatalf(f string, v ...any) { l.l.Error("bus: fatal: " + fmt.Sprintf(f, v...)) }
