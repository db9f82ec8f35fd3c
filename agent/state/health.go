package state

import (
	"errors"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"lode"
)

const wipeHint = "the node builds it again from snapshots and journals; nothing that was acknowledged is lost"

// health is what the database said of its disk in the background.
type health struct {
	mu      sync.Mutex
	flush   error         // of the last flush; nil: it worked
	compact error         // of the last compaction
	last    error         // how the newest of them ended
	lastOf  *error        // flush or compact: which that was
	dead    error         // the database cannot go on until it is opened again
	changed chan struct{} // closed when any of it, or what waits for the disk, changes
	stopped chan struct{}
	once    sync.Once
}

func newHealth() *health {
	return &health{changed: make(chan struct{}), stopped: make(chan struct{})}
}

// stop lets a database that is being closed end without waiting for its disk.
func (h *health) stop() { h.once.Do(func() { close(h.stopped) }) }

func (h *health) fatal(err error) {
	h.note(func() {
		if h.dead == nil {
			h.dead = err
		}
	})
}

func (h *health) note(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.changed)
	h.changed = make(chan struct{})
}

// ended notes how a flush or a compaction ended; failed, that its error is one.
func (h *health) ended(of *error, err error) {
	h.note(func() {
		if err == nil {
			*of = nil
		}
		h.last, h.lastOf = err, of
	})
}

func (h *health) failed(err error) {
	h.note(func() {
		if h.lastOf != nil && errors.Is(err, h.last) {
			*h.lastOf = err
		}
	})
}

// look returns what keeps changes from the disk, if anything, and a channel
// that is closed when that may have changed. merging adds what keeps the
// database from putting its files in order.
func (h *health) look(merging bool) (<-chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dead != nil {
		return h.changed, lode.Errorf(diskKind(h.dead), "the local state of agents can take no more changes until the node starts again: %w", h.dead).
			WithHint("free space on that disk and start the node again")
	}
	err := h.flush
	if err == nil && merging {
		err = h.compact
	}
	if err != nil {
		return h.changed, diskError("write the local state of agents", err)
	}
	return h.changed, nil
}

// await waits for done, or for something to go wrong.
func (h *health) await(done <-chan struct{}) error {
	for {
		changed, err := h.look(false)
		select {
		case <-done:
			return nil
		default:
		}
		if err != nil {
			return err
		}
		select {
		case <-done:
			return nil
		case <-changed:
		}
	}
}

// listener hears of the database's work in the background. Its functions are
// called with locks of the database held. Work ends with an error too when it
// had nothing to write; only what is then said to be a BackgroundError is one.
func (h *health) listener() *pebble.EventListener {
	return &pebble.EventListener{
		FlushEnd:        func(i pebble.FlushInfo) { h.ended(&h.flush, i.Err) },
		CompactionEnd:   func(i pebble.CompactionInfo) { h.ended(&h.compact, i.Err) },
		BackgroundError: h.failed,
	}
}

// patientFS makes the database, which tries a failed flush again at once, wait
// a little before it does.
type patientFS struct {
	vfs.FS
	h *health
}

// Create implements vfs.FS.
func (p patientFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	_, err := p.h.look(true)
	if err == nil {
		return p.FS.Create(name, c)
	}
	select {
	case <-time.After(200 * time.Millisecond):
	case <-p.h.stopped:
		return nil, err
	}
	return p.FS.Create(name, c)
}

// failed gives an error of the database its kind.
func (d *DB) failed(doing string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*lode.Error](err); ok {
		return err
	}
	if pebble.IsCorruptionError(err) {
		return lode.Errorf(lode.Damaged, "%s in %s: %w", doing, d.dir, err).WithHint("%s", wipeHint)
	}
	return diskError(doing, err)
}

// opening gives an error of opening its kind. What is not of the disk or of
// another process is of the files: whatever it is, they can be made again.
func opening(dir string, err error) error {
	const doing = "open the local state of agents"
	_, ofSystem := errors.AsType[syscall.Errno](err)
	switch {
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EACCES) && strings.Contains(err.Error(), "LOCK"), strings.Contains(err.Error(), "lock held"):
		return lode.Errorf(lode.Unavailable, "%s in %s: somebody else has it open: %w", doing, dir, err).
			WithHint("stop the other node that uses this folder")
	case pebble.IsCorruptionError(err), !ofSystem, errors.Is(err, fs.ErrNotExist):
		return lode.Errorf(lode.Damaged, "%s in %s: %w", doing, dir, err).WithHint("%s", wipeHint)
	}
	return diskError(doing, err)
}

// diskError gives a failed file operation its kind.
func diskError(doing string, err error) error {
	e := lode.Errorf(diskKind(err), "%s: %w", doing, err)
	if e.Kind == lode.Full {
		return e.WithHint("free space on that disk")
	}
	return e
}

func diskKind(err error) lode.Kind {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return lode.Full
	case pebble.IsCorruptionError(err):
		return lode.Damaged
	}
	return lode.Internal
}
