package member

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"lode"
	"lode/bus"
)

// MembersConfig says what Members mirror. Identity is needed.
type MembersConfig struct {
	Identity *Identity
	// Changed is called after the mirror changed, and once for several changes
	// that came at once, from a goroutine of its own; Close waits for it. It
	// may call what answers from memory.
	Changed func()
	// Alive tells Remove whether a node answers; nil: none does.
	Alive  func(lode.NodeID) bool
	Clock  Clock        // nil: the machine's
	Logger *slog.Logger // nil: slog.Default
}

// Members mirrors who belongs to the cluster, and answers from memory. It
// begins with what it knew at its last run (peers.json beside the identity),
// so that the nodes of a cluster find each other while the bus is not up.
//
//	stale --(Follow, and the bus answers)--> synced --(the bus is lost)--> synced, as old as the loss
//
// All methods may be called at the same time.
type Members struct {
	cfg         MembersConfig
	incarnation string

	mu       sync.RWMutex
	nodes    map[lode.NodeID]Record // never changed in place
	removed  map[string]removal     // by mark
	synced   bool
	tables   Tables                   // nil until Follow
	expelled error                    // by another node's word
	told     map[chan<- struct{}]bool // get a note of each change; never blocked on

	start   sync.Once
	stop    context.CancelFunc
	ctx     context.Context
	running sync.WaitGroup
	first   chan struct{} // closed when synced for the first time
	notes   chan struct{} // room for one: Changed is to be called
}

// OpenMembers reads what was known at the last run. It needs no bus.
func OpenMembers(cfg MembersConfig) (*Members, error) {
	cfg.Clock = orWall(cfg.Clock)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	m := &Members{cfg: cfg, incarnation: randomHex(16), nodes: map[lode.NodeID]Record{}, removed: map[string]removal{}, told: map[chan<- struct{}]bool{}, first: make(chan struct{}), notes: make(chan struct{}, 1)}
	m.ctx, m.stop = context.WithCancel(context.Background())
	if cfg.Changed != nil {
		m.running.Go(m.notify)
	}
	p, err := readPeers(cfg.Identity.dir)
	if err != nil {
		cfg.Logger.Warn("what was known of the other nodes cannot be read; it comes again from the bus", "error", err)
		return m, nil
	}
	m.load(p)
	return m, nil
}

// peersFile is peers.json.
type peersFile struct {
	Format  int                `json:"format"` // 1
	Nodes   []Record           `json:"nodes"`
	Removed map[string]removal `json:"removed,omitempty"` // by mark
}

func readPeers(dir string) (peersFile, error) {
	p := peersFile{Format: 1}
	b, err := os.ReadFile(filepath.Join(dir, filePeers))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return peersFile{Format: 1}, err
	}
	if p.Format != 1 {
		return peersFile{Format: 1}, lode.Errorf(lode.Precondition, "%s has format %d", filePeers, p.Format)
	}
	return p, nil
}

func writePeers(dir string, p peersFile) error {
	b, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return err
	}
	return writeFile(dir, filePeers, b, 0o600)
}

func (m *Members) load(p peersFile) {
	for _, r := range p.Nodes {
		if err := r.check(); err == nil {
			m.nodes[r.Name] = r
		}
	}
	maps.Copy(m.removed, p.Removed)
}

// Follow begins to mirror table "nodes", as soon as the bus has it and for as
// long as Members are open. Only the first call counts.
func (m *Members) Follow(tables Tables) {
	m.start.Do(func() {
		m.mu.Lock()
		m.tables = tables
		m.mu.Unlock()
		m.running.Go(m.follow)
	})
}

// Close ends the mirror. It may be called again, but not by Changed.
func (m *Members) Close() error {
	m.start.Do(func() {})
	m.stop()
	m.running.Wait()
	return nil
}

// Synced is closed when the mirror has shown all that the bus had.
func (m *Members) Synced() <-chan struct{} { return m.first }

// List returns all nodes, by name.
func (m *Members) List() []Record {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]Record, 0, len(m.nodes))
	for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
		out = append(out, m.nodes[name].clone())
	}
	return out
}

// Get returns a node's record; false if there is no such node.
func (m *Members) Get(node lode.NodeID) (Record, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	r, ok := m.nodes[node]
	return r.clone(), ok
}

// Allowed reports whether the mirror lets a node in that shows a certificate
// of that serial.
func (m *Members) Allowed(node lode.NodeID, serial string) bool { return m.look(node, serial) == nil }

// Expelled is nil while this node belongs to the cluster; else an error of
// kind Gone that says what to do: by the table, or because another node has
// said so. Changed is called when it changes.
func (m *Members) Expelled() error {
	id := m.cfg.Identity
	if err := m.look(id.Node(), id.Serial()); lode.KindOf(err) == lode.Gone {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.expelled
}

// expel notes that another node says this one was removed. Nobody forgets a
// removal while the certificate lives, so one is enough.
func (m *Members) expel(err error) {
	m.mu.Lock()
	news := m.expelled == nil
	m.expelled = err
	m.mu.Unlock()
	if news {
		m.note()
	}
}

// note has Changed called soon.
func (m *Members) note() {
	select {
	case m.notes <- struct{}{}:
	default: // it will be called anyway
	}
}

// notify calls Changed until Members are closed.
func (m *Members) notify() {
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.notes:
			m.cfg.Changed()
		}
	}
}

// errUnknown is what look says of a node that it has not heard of.
var errUnknown = errors.New("no record")

// look is Check from memory alone. Until the mirror has seen the bus, nodes
// that it does not know pass: they have a certificate of the cluster, and
// without them the bus might never come up.
func (m *Members) look(node lode.NodeID, serial string) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if gone, ok := m.removed[markIn(serial)]; ok {
		return gone.err()
	}
	r, ok := m.nodes[node]
	switch {
	case ok && r.mark() == markIn(serial):
		return nil
	case !m.synced && !ok:
		return nil
	case ok:
		return unknown("the name %s belongs to another node now", node).
			WithHint("join again with a fresh folder and another name: lode up --name N --join HOST --token ...")
	}
	return unknown("node %s is not known to the cluster", node).
		WithHint("join with a fresh folder: lode token create --join on a node of the cluster, then lode up --join HOST --token ...")
}

func unknown(format string, node lode.NodeID) *lode.Error {
	e := lode.Errorf(lode.Denied, format, node)
	e.Err = errUnknown
	return e
}

// askFor is how long Check waits for the bus.
const askFor = time.Second

// Check is nil if a node that shows a certificate of that serial belongs to
// the cluster. Gone: it was removed. Denied: it is not known, or its name has
// gone to another. A node that the mirror does not know is looked for in the
// bus, for it may have joined a moment ago; where the bus cannot be asked it
// passes, as in look. It is a Gate.
func (m *Members) Check(node lode.NodeID, serial string) error {
	err := m.look(node, serial)
	if !errors.Is(err, errUnknown) {
		return err
	}
	ctx, cancel := context.WithTimeout(m.ctx, askFor)
	defer cancel()
	r, _, ok, e := m.fetch(ctx, node)
	if e != nil {
		m.cfg.Logger.Debug("a node that is not known here was let in, for the bus cannot be asked", "node", node, "error", e)
		return nil
	}
	if ok && r.mark() == markIn(serial) {
		return nil
	}
	return err
}

var _ Gate = (*Members)(nil).Check

// tell leaves a note in c, which has room for one, at each change, until the
// returned function is called.
func (m *Members) tell(c chan<- struct{}) (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told[c] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.told, c)
	}
}

// table opens table "nodes". Unavailable before Follow.
func (m *Members) table(ctx context.Context) (*bus.Table, error) {
	m.mu.RLock()
	t := m.tables
	m.mu.RUnlock()
	if t == nil {
		return nil, lode.Errorf(lode.Unavailable, "the bus is not open yet").WithHint("try again in a moment")
	}
	return t.Table(ctx, tableNodes)
}

// fetch reads a node's record from the bus.
func (m *Members) fetch(ctx context.Context, node lode.NodeID) (Record, uint64, bool, error) {
	t, err := m.table(ctx)
	if err != nil {
		return Record{}, 0, false, err
	}
	e, ok, err := t.Get(ctx, string(node))
	if err != nil || !ok {
		return Record{}, 0, false, err
	}
	r, err := parseRecord(e.Value)
	return r, e.Rev, true, err
}

// follow mirrors until Members are closed.
func (m *Members) follow() {
	for n := 0; m.ctx.Err() == nil; n++ {
		began := m.cfg.Clock.Now()
		err := m.mirror(m.ctx)
		if m.ctx.Err() != nil {
			return
		}
		if m.cfg.Clock.Now().Sub(began) > time.Minute {
			n = 0
		}
		m.cfg.Logger.Warn("the table of nodes is not mirrored for the moment", "error", err)
		if m.cfg.Clock.Sleep(m.ctx, backoff(n, 100*time.Millisecond, 5*time.Second)) != nil {
			return
		}
	}
}

// mirror follows one watch to its end.
func (m *Members) mirror(ctx context.Context) error {
	t, err := m.table(ctx)
	if err != nil {
		return err
	}
	w, err := t.Watch(ctx, "")
	if err != nil {
		return err
	}
	defer w.Close()
	nodes, removed, synced := map[lode.NodeID]Record{}, map[string]removal{}, false
	for {
		c, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if c.Op == bus.Synced {
			synced = true
		} else {
			m.apply(c, nodes, removed)
		}
		if synced {
			m.publish(maps.Clone(nodes), maps.Clone(removed))
		}
	}
}

// apply puts a change of the table into the maps.
func (m *Members) apply(c bus.Change, nodes map[lode.NodeID]Record, removed map[string]removal) {
	mark, isRemoval := strings.CutPrefix(c.Key, prefixRemoved)
	switch {
	case c.Op == bus.Deleted && isRemoval:
		delete(removed, mark)
	case c.Op == bus.Deleted:
		delete(nodes, lode.NodeID(c.Key))
	case isRemoval:
		var r removal
		if err := json.Unmarshal(c.Value, &r); err != nil {
			m.cfg.Logger.Error("the record of a removed node cannot be read", "key", c.Key, "error", err)
		}
		removed[mark] = r
	default:
		r, err := parseRecord(c.Value)
		if err != nil || string(r.Name) != c.Key {
			m.cfg.Logger.Error("the record of a node cannot be read", "key", c.Key, "error", err)
			return
		}
		nodes[r.Name] = r
	}
}

// publish makes the maps what everybody sees, and keeps them for the next
// start.
func (m *Members) publish(nodes map[lode.NodeID]Record, removed map[string]removal) {
	m.mu.Lock()
	m.nodes, m.removed = nodes, removed
	first := !m.synced
	m.synced = true
	for c := range m.told {
		select {
		case c <- struct{}{}:
		default: // it has a note already
		}
	}
	m.mu.Unlock()
	if first {
		close(m.first)
	}
	p := peersFile{Format: 1, Removed: removed}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		p.Nodes = append(p.Nodes, nodes[name])
	}
	if err := writePeers(m.cfg.Identity.dir, p); err != nil {
		m.cfg.Logger.Warn("what is known of the other nodes is not kept for the next start", "error", err)
	}
	m.note()
}
