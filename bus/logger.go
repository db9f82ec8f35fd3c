package bus

import (
	"context"
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

// grave are the few reports that a person must know of, in Lode's words. All
// else that the server reports belongs to elections, joins, restarts and the
// repair of its own files: it goes on by itself, and what does not shows in
// Health and in the errors of calls.
var grave = []struct {
	words string
	parts []string
}{
	{"a write to the disk failed", []string{"ritical write error", "failed to store a msg", "will be DISABLED", "disabling JetStream", "permission denied", "no space left"}},
	{"a file of the store is damaged", []string{"checkMsgs:", "loadBlock error", "checksums do not match", "Error recreating stream", "Error reading metafile",
		"Missing stream metafile", "Missing stream checksum", "Error loading message for catchup", "Error loading msg"}},
	{"the port for the other members cannot be used", []string{"Accept error", "Error listening"}},
}

// words are Lode's for a report that a person must know of; "": it is none.
func words(text string) string {
	for _, g := range grave {
		if slices.ContainsFunc(g.parts, func(part string) bool { return strings.Contains(text, part) }) {
			return g.words
		}
	}
	return ""
}

func (l *logger) say(level slog.Level, text string) {
	if w := words(text); w != "" {
		l.l.Log(context.Background(), level, "bus: "+w, "detail", text)
		return
	}
	l.l.Debug("bus: " + text)
}

func (l *logger) Warnf(f string, v ...any) { l.say(slog.LevelWarn, fmt.Sprintf(f, v...)) }

func (l *logger) Errorf(f string, v ...any) {
	text := fmt.Sprintf(f, v...)
	l.say(slog.LevelError, text)
	if writeFailed(text) {
		l.failed()
	}
}

func (l *logger) Fatalf(f string, v ...any) {
	l.l.Error("bus: its server cannot go on", "detail", fmt.Sprintf(f, v...))
}
