package state

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/time/rate"

	"lode"
	"lode/agent/journal"
)

// Config says how much a DB may use. The zero value works.
type Config struct {
	Cache    int64 // bytes of memory for blocks that were read, 32 MiB
	Memtable int64 // bytes of changes before they are written to disk, 8 MiB; up to three such are in memory
	SaveRate int64 // bytes of segments a second that all Saves together make, 64 MiB; < 0: no limit
	Logger   *slog.Logger

	fs vfs.FS // the files, for tests that break them
}

// DB holds the partitions of one node. Its methods may be called from many
// goroutines; after Close they fail with Unavailable.
type DB struct {
	dir    string
	db     *pebble.DB
	opts   *pebble.Options
	health *health
	gate   gate
	limit  *rate.Limiter // of Saves; nil: none

	closing context.Context
	close   context.CancelFunc
	closed  sync.Once
	closeOf error

	unflushed atomic.Int64 // bytes applied since the last look at what waits for the disk

	mu      sync.Mutex
	key     []byte
	applied map[lode.NodeID]uint64
	parts   map[journal.Partition]*copyOf
	views   map[*View]bool
}

// copyOf is what is known, in memory, of a partition.
type copyOf struct {
	mark  Mark
	held  bool  // there is a mark
	dirt  *dirt // what has changed since a snapshot; nil: not known
	since *log  // changes since the Save under way began; nil: none is under way
}

// format is the version of the keys, see the package comment.
const format = 1

// Open opens the copy in dir, or makes an empty one. Damaged: it cannot be
// used; Wipe it and build it again. Unavailable: somebody else has it open.
func Open(dir string, c Config) (*DB, error) {
	c = c.filled()
	if err := sweep(dir); err != nil {
		return nil, err
	}
	d := &DB{dir: dir, health: newHealth(), applied: map[lode.NodeID]uint64{}, parts: map[journal.Partition]*copyOf{}, views: map[*View]bool{}}
	d.closing, d.close = context.WithCancel(context.Background())
	d.gate.empty = make(chan struct{}, 1)
	if c.SaveRate > 0 {
		d.limit = rate.NewLimiter(rate.Limit(c.SaveRate), int(min(c.SaveRate, 1<<30)))
	}
	cache := pebble.NewCache(c.Cache)
	defer cache.Unref()
	d.opts = options(c, cache, d)
	db, err := pebble.Open(filepath.Join(dir, "db"), d.opts)
	if err != nil {
		d.close()
		return nil, opening(dir, err)
	}
	d.db = db
	if err := d.load(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (c Config) filled() Config {
	if c.Cache <= 0 {
		c.Cache = 32 << 20
	}
	if c.Memtable <= 0 {
		c.Memtable = 8 << 20
	}
	if c.SaveRate == 0 {
		c.SaveRate = 64 << 20
	}
	if c.fs == nil {
		c.fs = vfs.Default
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Wipe removes a copy that is not open, so that Open makes an empty one.
func Wipe(dir string) error {
	for _, sub := range []string{"db", "in"} {
		if err := os.RemoveAll(filepath.Join(dir, sub)); err != nil {
			return diskError("remove the local state of agents", err)
		}
	}
	return nil
}

// sweep makes the folders, and removes what a Restore left that was killed.
func sweep(dir string) error {
	in := filepath.Join(dir, "in")
	if err := os.RemoveAll(in); err != nil {
		return diskError("open the local state of agents", err)
	}
	if err := os.MkdirAll(in, 0o700); err != nil {
		return diskError("open the local state of agents", err)
	}
	return nil
}

// load checks the format, and reads the positions and marks.
func (d *DB) load() error {
	v, err := d.get([]byte{'v'})
	if err != nil {
		return err
	}
	if v == nil {
		if err := d.db.Set([]byte{'v'}, []byte{format}, pebble.NoSync); err != nil {
			return d.failed("write the format of the local state", err)
		}
	} else if len(v) != 1 || v[0] != format {
		return lode.Errorf(lode.Damaged, "the local state in %s has format %d, not %d", d.dir, v, format).WithHint("%s", wipeHint)
	}
	if err := d.scan([]byte{'a'}, func(k, v []byte) error {
		if len(v) != 8 {
			return d.badRecord("position", k)
		}
		d.applied[lode.NodeID(k)] = le64(v)
		return nil
	}); err != nil {
		return err
	}
	return d.scan([]byte{'m'}, func(k, v []byte) error {
		p, ok := parsePartition(k)
		m, ok2 := parseMark(v)
		if !ok || !ok2 {
			return d.badRecord("mark", k)
		}
		d.parts[p] = &copyOf{mark: m, held: true}
		return nil
	})
}

func (d *DB) badRecord(what string, k []byte) error {
	return lode.Errorf(lode.Damaged, "the local state in %s has a %s that cannot be read: key %q", d.dir, what, k).WithHint("%s", wipeHint)
}

// scan calls f for every key of one class, without its letter.
func (d *DB) scan(class []byte, f func(k, v []byte) error) error {
	it, err := d.db.NewIter(&pebble.IterOptions{LowerBound: class, UpperBound: after(class)})
	if err != nil {
		return d.failed("read the local state", err)
	}
	for it.First(); it.Valid() && err == nil; it.Next() {
		err = f(it.Key()[len(class):], it.Value())
	}
	if cerr := it.Close(); cerr != nil {
		return d.failed("read the local state", cerr)
	}
	return err
}

// get is the value of a key of the database, a copy; nil: there is none.
func (d *DB) get(key []byte) ([]byte, error) {
	v, c, err := d.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, d.failed("read the local state", err)
	}
	out := append(make([]byte, 0, len(v)), v...)
	return out, c.Close()
}

// Close writes what is in memory to disk and closes the DB, and its views. It
// ends Saves and Restores that are under way. A second call returns the same.
func (d *DB) Close() error {
	d.closed.Do(func() {
		d.close()
		d.gate.shut()
		d.mu.Lock()
		for v := range d.views {
			v.snap.Close()
		}
		d.views = nil
		d.mu.Unlock()
		err := d.flush()
		d.health.stop()
		if cerr := d.db.Close(); err == nil && cerr != nil {
			err = d.failed("close the local state", cerr)
		}
		d.closeOf = err
	})
	return d.closeOf
}

// flush writes what was applied so far to disk.
func (d *DB) flush() error {
	done, err := d.db.AsyncFlush()
	if err != nil {
		return d.failed("flush the local state", err)
	}
	return d.health.await(done)
}

// enter begins a use of the DB, that leave ends.
func (d *DB) enter() error {
	if !d.gate.enter() {
		return lode.Errorf(lode.Unavailable, "the local state of agents is closed")
	}
	return nil
}

func (d *DB) leave() { d.gate.leave() }

// gate counts who is inside, until it is shut.
type gate struct {
	n     atomic.Int64 // who is inside; far below zero: shut
	empty chan struct{}
}

func (g *gate) enter() bool {
	if g.n.Add(1) > 0 {
		return true
	}
	g.leave()
	return false
}

func (g *gate) leave() {
	if g.n.Add(-1) == math.MinInt64/2 {
		select {
		case g.empty <- struct{}{}:
		default:
		}
	}
}

// shut lets nobody in any more and waits until all have left.
func (g *gate) shut() {
	for n := g.n.Add(math.MinInt64 / 2); n != math.MinInt64/2; n = g.n.Load() {
		<-g.empty
	}
}
