package bus

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"lode"
)

// mender brings the store back after a write that failed. Space is watched
// (space.go), but others can fill the disk at any moment; a stream whose write
// failed refuses all that follows, even when there is room again, until it is
// opened anew.
type mender struct {
	b      *Bus
	broken atomic.Bool

	mu      sync.Mutex
	closed  bool
	working sync.WaitGroup
}

// mendPause is between two looks at a disk that was full.
const mendPause = 250 * time.Millisecond

// failed notes a write that failed, and mends what it broke once there is
// room.
func (m *mender) failed() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.broken.Swap(true) {
		return
	}
	m.working.Go(m.mend)
}

// check refuses writes while the store is broken: each of them would be waited
// for in vain.
func (m *mender) check() error {
	if !m.broken.Load() || m.b.replicas() > 1 {
		return nil // where there are other members, they go on
	}
	e := lode.Errorf(lode.Full, "the disk of %s is full, or failed: a write did not come through", m.b.cfg.Dir)
	e.RetryAfter = 5 * time.Second
	return e.WithHint("free some disk space: the node goes on by itself")
}

func (m *mender) mend() {
	log := m.b.cfg.Logger
	for {
		select {
		case <-m.b.closed:
			return
		case <-time.After(mendPause):
		}
		if free, err := freeBytes(m.b.cfg.Dir); err == nil && free <= m.b.cfg.Reserve/2 {
			continue
		}
		m.broken.Store(false) // what fails from here on is a new failure
		err := m.reopen()
		if err == nil && !m.broken.Load() {
			log.Warn("bus: the store was opened anew after a write that failed")
			return
		}
		m.broken.Store(true)
		log.Error("bus: the store cannot be opened anew", "err", err)
	}
}

// reopen closes the store and opens it as it was at the start.
func (m *mender) reopen() error {
	i := m.b.instance(m.b.Layout().Generation)
	if i == nil {
		return m.b.missing() // it has moved away meanwhile, or could not be started
	}
	if i.routes != nil {
		return m.b.relaunch(i)
	}
	if err := i.srv.ShutdownJetStream(); err != nil {
		return err
	}
	o := i.options
	return i.srv.EnableJetStream(&server.JetStreamConfig{StoreDir: o.StoreDir, SyncInterval: o.SyncInterval, SyncAlways: o.SyncAlways,
		MaxMemory: o.JetStreamMaxMemory, MaxStore: o.JetStreamMaxStore, Strict: !o.NoJetStreamStrict})
}

// missing starts a server that should be here and is not.
func (b *Bus) missing() error {
	b.switching.Lock()
	defer b.switching.Unlock()
	if err := b.open(); err != nil {
		return err
	}
	l := b.Layout()
	if !l.Has(b.cfg.Node) || !formed(b.cfg.Dir, l) || b.instance(l.Generation) != nil {
		return nil
	}
	i, err := b.launch(b.ctx, l)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.instances[l.Generation] = i
	b.mu.Unlock()
	b.nc.ForceReconnect()
	return nil
}

// relaunch starts the server of a member again: the others bring it up to
// date.
func (b *Bus) relaunch(i *instance) error {
	b.switching.Lock()
	defer b.switching.Unlock()
	if err := b.open(); err != nil {
		return err
	}
	if b.instance(i.layout.Generation) != i {
		return nil // it has moved away meanwhile
	}
	b.mu.Lock()
	delete(b.instances, i.layout.Generation)
	b.mu.Unlock()
	i.stop()
	next, err := b.launch(b.ctx, i.layout)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.instances[i.layout.Generation] = next
	b.mu.Unlock()
	b.nc.ForceReconnect()
	return nil
}

// close ends the mending; the bus is marked as closed before.
func (m *mender) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.working.Wait()
}

// writeFailed tells the server's report of a write that failed for good, or
// that it gave its store up.
func writeFailed(format string) bool {
	return strings.Contains(format, "ritical write error") || strings.Contains(format, "resources, will be DISABLED")
}
