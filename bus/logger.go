package bus

import (
	"fmt"
	"log/slog"

	"github.com/nats-io/nats-server/v2/server"
)

// logger passes the server's log to slog. Its notices are about its own
// start and are of use only when it is being debugged.
type logger struct{ l *slog.Logger }

var _ server.Logger = (*logger)(nil)

func (l *logger) Noticef(f string, v ...any) { l.l.Debug("bus: " + fmt.Sprintf(f, v...)) }
func (l *logger) Debugf(f string, v ...any)  {}
func (l *logger) Tracef(f string, v ...any)  {}
func (l *logger) Warnf(f string, v ...any)   { l.l.Warn("bus: " + fmt.Sprintf(f, v...)) }
func (l *logger) Errorf(f string, v ...any)  { l.l.Error("bus: " + fmt.Sprintf(f, v...)) }
func (l *logger) Fatalf(f string, v ...any)  { l.l.Error("bus: fatal: " + fmt.Sprintf(f, v...)) }
