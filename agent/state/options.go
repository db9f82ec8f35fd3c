package state

import (
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

// waiting is how many full memtables may wait for the disk, and how deep the
// newest level may be, before changes wait. The database's own limits are out of
// reach: who waits there cannot be told that the disk is full.
const (
	waitingMemtables = 3
	waitingDepth     = 16
)

// options of a database that is small in memory, and in no hurry to be on
// disk: what it loses in a crash is read again from journals.
func options(c Config, cache *pebble.Cache, d *DB) *pebble.Options {
	o := &pebble.Options{
		FS:                          patientFS{c.fs, d.health},
		Cache:                       cache,
		DisableWAL:                  true,
		FormatMajorVersion:          pebble.FormatTableFormatV6,
		MemTableSize:                uint64(c.Memtable),
		MemTableStopWritesThreshold: 1 << 20,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       1 << 20,
		LBaseMaxBytes:               64 << 20,
		MaxOpenFiles:                512,
		BytesPerSync:                1 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		EventListener:               d.health.listener(),
		Logger:                      logger{c.Logger, d.health},
	}
	o.TargetFileSizes[0] = 4 << 20
	o.Levels[0].FilterPolicy = bloom.FilterPolicy(10)
	o.Levels[0].BlockSize = 8 << 10
	o.Levels[0].IndexBlockSize = 64 << 10
	o.Experimental.FileCacheShards = 4
	o.EnsureDefaults()
	return o
}

// logger is what the database says, for people who look for it.
type logger struct {
	l *slog.Logger
	h *health
}

var _ pebble.Logger = logger{}

// Infof implements pebble.Logger.
func (l logger) Infof(format string, args ...any) {
	l.l.Debug("local state of agents", "says", fmt.Sprintf(format, args...))
}

// Errorf implements pebble.Logger.
func (l logger) Errorf(format string, args ...any) {
	l.l.Warn("local state of agents", "says", fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger. The database calls it when it cannot write
// its list of files, and then does not use what it failed to write. The node
// lives on: it reads, and applies nothing more.
func (l logger) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	for _, a := range args {
		if e, ok := a.(error); ok {
			err = e
		}
	}
	l.h.fatal(err)
	l.l.Error("the local state of agents can take no more changes", "error", err)
}
