package link

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lode"
)

// Config of a Link. Handle is immutable after New. The callbacks are called
// from the link's own goroutines and must not block.
type Config struct {
	Self lode.NodeID
	// Dial opens a connection to a peer and proves who it is: TLS with the
	// peer's name checked, handshake done. nil: this node only accepts.
	Dial func(ctx context.Context, to lode.NodeID) (net.Conn, error)
	// Handle is what answers calls, by method (at most 64 bytes).
	Handle map[string]Handler
	// Beat gives what the next heartbeat carries, at most MaxBeat bytes. It is
	// called once a heartbeat and peer. nil: nothing.
	Beat func() []byte
	// Heard is called for each heartbeat of a peer. b.Payload is its own.
	Heard func(from lode.NodeID, b Beat)
	// Changed is called when a peer came up (why is nil) or was lost.
	Changed func(node lode.NodeID, up bool, why error)

	BeatEvery time.Duration // 0: 200 ms
	LostAfter time.Duration // silence after which a peer is lost, at least two beats; 0: 1 s
	Logger    *slog.Logger  // nil: slog.Default
}

// Beat is a peer's heartbeat.
type Beat struct {
	Payload []byte        // what the peer's Config.Beat gave
	RTT     time.Duration // smoothed; 0: not known yet
	Skew    time.Duration // the peer's wall clock minus ours, estimated
}

// Peer is what is known of one peer.
type Peer struct {
	Node      lode.NodeID
	Up        bool
	Why       error         // why it is not up; nil: up, or never tried
	RTT       time.Duration // smoothed; 0: not known yet
	Skew      time.Duration // the peer's wall clock minus ours, estimated
	LastHeard time.Time     // zero: never
	BytesIn   int64
	BytesOut  int64
	Bandwidth float64 // bytes/s of bodies over 1 MiB, a decaying mean; 0: not known yet
	Calls     int64   // started here
	Served    int64   // started there, answered here
	Refused   int64   // frames that broke the protocol, each of which cost a connection
}

// Link is a node's connections with its peers. It is safe for concurrent use.
type Link struct {
	cfg      Config
	log      *slog.Logger
	methods  map[string]method
	instance uint64        // drawn at the start; tells a restarted peer from one that is still there
	seq      atomic.Uint64 // of the hellos
	bufs     bufs
	work     chan *Incoming // to a handler goroutine that waits
	idle     atomic.Int64   // how many wait
	done     chan struct{}  // closed by Close
	wg       sync.WaitGroup // every goroutine of the link
	news     news

	mu     sync.Mutex
	peers  map[lode.NodeID]*peer
	closed bool
}

// method is a handler with its name, so that a call need not make a string.
type method struct {
	name   string
	handle Handler
}

// New returns a Link without peers. Close ends it.
func New(cfg Config) *Link {
	if cfg.BeatEvery <= 0 {
		cfg.BeatEvery = 200 * time.Millisecond
	}
	if cfg.LostAfter <= 0 {
		cfg.LostAfter = time.Second
	}
	cfg.LostAfter = max(cfg.LostAfter, 2*cfg.BeatEvery)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	l := &Link{cfg: cfg, log: cfg.Logger, methods: map[string]method{}, work: make(chan *Incoming), done: make(chan struct{}), peers: map[lode.NodeID]*peer{}}
	for name, h := range cfg.Handle {
		l.methods[name] = method{name, h}
	}
	var b [8]byte
	rand.Read(b[:])
	l.instance = binary.BigEndian.Uint64(b[:])
	l.news.init()
	l.wg.Go(func() { l.news.run(cfg.Changed) })
	return l
}

// SetPeers says whom to stay connected with, this node itself left out. A node
// that is no longer named is disconnected, and refused until it is named
// again.
func (l *Link) SetPeers(nodes []lode.NodeID) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	var gone []*peer
	for _, p := range l.peers {
		if p.wanted && !slices.Contains(nodes, p.node) {
			p.unwant()
			gone = append(gone, p)
		}
	}
	for _, n := range nodes {
		if n == l.cfg.Self {
			continue
		}
		if p := l.peerLocked(n); !p.wanted {
			p.want()
		}
	}
	l.mu.Unlock()
	for _, p := range gone {
		p.drop(errRemoved)
	}
}

// peerLocked returns the peer called node and makes it where it is new; l.mu is held.
func (l *Link) peerLocked(node lode.NodeID) *peer {
	p := l.peers[node]
	if p == nil {
		p = newPeer(l, node)
		l.peers[node] = p
	}
	return p
}

func (l *Link) peer(node lode.NodeID) *peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.peers[node]
}

// Wait returns when node is connected, or when ctx ends.
func (l *Link) Wait(ctx context.Context, node lode.NodeID) error {
	for {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return notSent(node, errClosing)
		}
		p := l.peerLocked(node)
		l.mu.Unlock()
		changed, c, why := p.state()
		if c != nil && !c.dead() {
			return nil
		}
		select {
		case <-changed:
		case <-l.done:
		case <-ctx.Done():
			return notSent(node, why)
		}
	}
}

// Peers lists every peer that is wanted, or that came by itself and was not
// removed, by name.
func (l *Link) Peers() []Peer {
	l.mu.Lock()
	ps := slices.Collect(maps.Values(l.peers))
	l.mu.Unlock()
	out := make([]Peer, 0, len(ps))
	for _, p := range ps {
		if !p.isRemoved() {
			out = append(out, p.view())
		}
	}
	slices.SortFunc(out, func(a, b Peer) int {
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
	return out
}

// Close ends every connection, fails the calls on them, cancels the contexts
// of handlers and waits for the handlers to return. It may be called again;
// not from a handler.
func (l *Link) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.done)
	}
	ps := slices.Collect(maps.Values(l.peers))
	for _, p := range ps {
		p.unwant()
	}
	l.mu.Unlock()
	for _, p := range ps {
		p.drop(errClosing)
	}
	l.news.close()
	l.wg.Wait()
	return nil
}
