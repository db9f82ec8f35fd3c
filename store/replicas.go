package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"lode"
)

// DefaultCopies is on how many nodes a blob is durable where nothing else is
// said.
const DefaultCopies = 2

// ReplicasConfig says over which nodes blobs are kept.
type ReplicasConfig struct {
	Self  lode.NodeID
	Local *Dir // this node's replicas; required
	// Nodes are the members of the cluster, this one included; those that were
	// removed are not among them. It answers from memory. nil: this node alone.
	Nodes func() []NodeState
	// Remote is the side of another node. nil: this node alone.
	Remote func(lode.NodeID) Remote
	Copies int // what says nothing is kept on so many nodes; 0: DefaultCopies
	// RepairRate bounds the bytes a second that Repair sends; 0: 64 MiB.
	RepairRate int64
	// DropAfter is how long Repair leaves a copy that is more than wanted
	// before it drops it; 0: an hour.
	DropAfter time.Duration
	Logger    *slog.Logger // nil: slog.Default
}

// Replicas are a home on the nodes of a cluster: each blob is durable on
// several of them, chosen by rendezvous of its digest. On one node it is that
// node's directory, used in place.
//
// Promises:
//
//   - A put is acknowledged when min(copies, living nodes) nodes have the blob
//     on disk and synced. While one of them lives, it can be read.
//   - What is read was verified: a bad copy is passed over, moved away by its
//     node, and made again.
//   - A deletion reaches every living node, and is remembered for a week, so
//     that a node that was away does not bring the blob back. Deletion and put
//     are ordered by the blob's Modified, so nodes that hear of them in another
//     order agree: a put made after a deletion wins wherever it meets it.
//   - Repair of all nodes, again and again, brings every blob to its wanted
//     count on the nodes where it belongs, whoever was lost or came back, and
//     never drops a copy before that is so.
//
// After a failed put some nodes may hold the blob. Nothing names it, so it is
// collected when it is old.
type Replicas struct {
	cfg    ReplicasConfig
	peers  *peers
	shelf  *Shelf
	log    *slog.Logger
	budget *rate.Limiter // of repair
	pass   chan struct{} // holds a token during a Repair

	mu      sync.Mutex
	healing map[lode.Digest]bool
	surplus map[lode.Digest]time.Time // since when a replica here is more than wanted
}

var (
	_ Home      = (*Replicas)(nil)
	_ local     = (*Replicas)(nil)
	_ io.Closer = (*Replicas)(nil)
)

// OpenReplicas opens the home on this node. Two of them over one directory at
// the same time are not allowed.
func OpenReplicas(cfg ReplicasConfig) (*Replicas, error) {
	if cfg.Local == nil {
		return nil, lode.Errorf(lode.Invalid, "replicas need a directory of this node")
	}
	if cfg.Copies <= 0 {
		cfg.Copies = DefaultCopies
	}
	if cfg.RepairRate <= 0 {
		cfg.RepairRate = 64 << 20
	}
	if cfg.DropAfter <= 0 {
		cfg.DropAfter = time.Hour
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	dead, err := openGraves(cfg.Local.t.root, time.Now())
	if err != nil {
		return nil, err
	}
	shelf := newShelf(cfg.Local.t, cfg.Logger)
	shelf.dead = dead
	r := &Replicas{cfg: cfg, shelf: shelf, log: cfg.Logger,
		peers:  newPeers(Peers{cfg.Self, cfg.Nodes, cfg.Remote}, shelf.count, cfg.Logger),
		budget: limiter(cfg.RepairRate), pass: make(chan struct{}, 1),
		healing: map[lode.Digest]bool{}, surplus: map[lode.Digest]time.Time{}}
	shelf.heal = r.healLater
	return r, nil
}

// Shelf is this node's side, for the other nodes.
func (r *Replicas) Shelf() *Shelf { return r.shelf }

func (r *Replicas) files() *tree { return r.cfg.Local.t }

// String names this node's directory, and that there are other nodes.
func (r *Replicas) String() string {
	if n := len(r.peers.nodes()); n > 1 {
		return "the nodes of the cluster, here " + r.cfg.Local.String()
	}
	return r.cfg.Local.String()
}

// Close ends what runs in the background and waits for it. Idempotent.
func (r *Replicas) Close() error {
	r.peers.close()
	return r.shelf.dead.Close()
}

// remote is a node's side, this one's own included.
func (r *Replicas) remote(n lode.NodeID) Remote {
	if n == r.cfg.Self {
		return r.shelf
	}
	return r.cfg.Remote(n)
}

// heal replaces a bad replica by a good copy of another node. why is returned
// where there is none: the damage is what the caller should hear of.
func (r *Replicas) heal(ctx context.Context, d lode.Digest, why error) error {
	if !r.shelf.setAside(d, why) {
		return nil // somebody else did
	}
	err := r.fetchReplica(ctx, d)
	if err != nil && lode.KindOf(err) == lode.NotFound {
		return why
	}
	return err
}

// fetchReplica makes d a replica of this node, from another.
func (r *Replicas) fetchReplica(ctx context.Context, d lode.Digest) error {
	sp, n, err := r.peers.fetch(ctx, d, r.files(), r.peers.everybody(d))
	if err != nil {
		return err
	}
	defer sp.discard()
	info, err := r.statElsewhere(ctx, d)
	if err != nil {
		info.Modified = time.Now() // a cached copy was all there was
	}
	if _, err := r.shelf.place(d, sp, PutAs{Modified: info.Modified, Repair: true}); err != nil {
		return err
	}
	r.shelf.count.repaired.Add(1)
	r.log.Info("a replica was made again", "digest", d, "bytes", n)
	return nil
}

// healLater fetches a good copy of what was moved away, once at a time.
func (r *Replicas) healLater(d lode.Digest) {
	r.mu.Lock()
	busy := r.healing[d]
	r.healing[d] = true
	r.mu.Unlock()
	if busy {
		return
	}
	done := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.healing, d)
	}
	if !r.peers.spawn(func() {
		defer done()
		if err := r.fetchReplica(r.peers.ctx, d); err != nil {
			r.log.Warn("a bad replica could not be made again", "digest", d, "err", err)
		}
	}) {
		done()
	}
}

// Get implements Home. What comes out was verified.
func (r *Replicas) Get(ctx context.Context, d lode.Digest) (io.ReadCloser, error) {
	if err := cancelled(ctx); err != nil {
		return nil, err
	}
	f, err := r.files().open(ctx, d)
	switch lode.KindOf(err) {
	case "":
		return f, nil
	case lode.NotFound:
	case lode.Damaged:
		if err := r.heal(ctx, d, err); err != nil {
			return nil, err
		}
		if f, err := r.files().open(ctx, d); lode.KindOf(err) != lode.NotFound {
			return openOr(f, err)
		}
	default:
		return nil, err
	}
	sp, _, err := r.peers.fetch(ctx, d, r.files(), r.peers.everybody(d))
	if err != nil {
		return nil, r.lost(d, err)
	}
	return &spooled{io.NewSectionReader(sp.f, 0, sp.size), sp}, nil
}

// lost makes of a blob that nobody has, but whose bad copy was moved away here,
// what it is: damage.
func (r *Replicas) lost(d lode.Digest, err error) error {
	if lode.KindOf(err) != lode.NotFound {
		return err
	}
	bad := r.files().bad(d)
	if bad == "" {
		return err
	}
	return lode.Errorf(lode.Damaged, "blob %s was damaged at %s, is kept as %s, and no other node has it", d, r.files().path(d), bad).
		WithHint("put the same data again to repair it, or restore that file from a backup")
}

// openOr keeps a nil file from becoming a reader that is not nil.
func openOr(f *os.File, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

// spooled reads a spool, which goes away at Close.
type spooled struct {
	*io.SectionReader
	sp *spool
}

func (s *spooled) Close() error { s.sp.discard(); return nil }

// Stat implements Home: NotFound if no living node has a replica.
func (r *Replicas) Stat(ctx context.Context, d lode.Digest) (Info, error) {
	info, err := r.shelf.Stat(ctx, d)
	if lode.KindOf(err) != lode.NotFound {
		return info, err
	}
	return r.statElsewhere(ctx, d)
}

// statElsewhere asks the nodes where d belongs, then all others.
func (r *Replicas) statElsewhere(ctx context.Context, d lode.Digest) (Info, error) {
	alive, _ := r.peers.others(d)
	first := min(len(alive), r.cfg.Copies)
	var fail error
	for _, part := range [][]lode.NodeID{alive[:first], alive[first:]} {
		ctx, cancel := context.WithCancel(ctx) // the first answer ends the others
		answers := each(ctx, askFor, part, func(ctx context.Context, n lode.NodeID) (Info, error) {
			info, err := r.remote(n).Stat(ctx, d)
			if err == nil {
				cancel()
			}
			return info, err
		})
		cancel()
		for _, a := range answers {
			if a.err == nil {
				return a.value, nil
			}
			if lode.KindOf(a.err) != lode.NotFound {
				fail = a.err
			}
		}
	}
	if err := cancelled(ctx); err != nil {
		return Info{}, err
	}
	if fail != nil {
		return Info{}, fail
	}
	return Info{}, notFound(d, "any living node of the cluster")
}

// Delete implements Home: it reaches every living node.
func (r *Replicas) Delete(ctx context.Context, d lode.Digest) error {
	_, err := r.deleteBefore(ctx, d, nil)
	return err
}

// deleteBefore removes d from every living node, but replicas that are not
// older than before (nil: of whatever age), and reports whether any went. A node that does not answer hears of it from the others at its
// next repair.
func (r *Replicas) deleteBefore(ctx context.Context, d lode.Digest, before *time.Time) (bool, error) {
	if err := cancelled(ctx); err != nil {
		return false, err
	}
	var cut time.Time
	if before != nil {
		cut = before.Add(-1) // a replica of exactly that time stays
	}
	alive, _ := r.peers.others(d)
	answers := each(ctx, askFor, append(alive, r.cfg.Self), func(ctx context.Context, n lode.NodeID) (bool, error) {
		return r.remote(n).Delete(ctx, d, cut)
	})
	gone, asked := false, 0
	var fail error
	for _, a := range answers {
		gone = gone || a.value
		switch lode.KindOf(a.err) {
		case "":
			asked++
		case lode.Conflict: // open there
			return false, a.err
		default:
			fail = a.err
		}
	}
	if err := cancelled(ctx); err != nil {
		return false, err
	}
	if asked == 0 {
		return false, fail
	}
	if fail != nil {
		r.log.Warn("a node did not take a deletion; it hears of it at its next repair", "digest", d, "err", fail)
	}
	return gone, nil
}

// List implements Home: what any living node has. Nodes that did not answer
// are named by the error at the end, after all that the others have.
func (r *Replicas) List(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		alive, _ := r.peers.others(lode.Digest{})
		all := append(alive, r.cfg.Self)
		answers := each(ctx, listFor, all, func(ctx context.Context, n lode.NodeID) ([]Info, error) {
			var out []Info
			for info, err := range r.remote(n).List(ctx) {
				if err != nil {
					return out, err
				}
				out = append(out, info)
			}
			return out, nil
		})
		if err := cancelled(ctx); err != nil {
			yield(Info{}, err)
			return
		}
		infos, failed := union(all, answers)
		for _, info := range infos {
			if !yield(info, nil) {
				return
			}
		}
		if failed != nil {
			yield(Info{}, failed)
		}
	}
}

// listFor bounds the listing of a node; a million blobs take some seconds.
const listFor = 2 * time.Minute

// union merges what nodes listed: of a blob's replicas the youngest counts.
func union(nodes []lode.NodeID, answers []answer[[]Info]) (map[lode.Digest]Info, error) {
	out := map[lode.Digest]Info{}
	var silent []lode.NodeID
	var first error
	for i, a := range answers {
		for _, info := range a.value {
			if old, ok := out[info.Digest]; !ok || info.Modified.After(old.Modified) {
				out[info.Digest] = info
			}
		}
		if a.err != nil {
			silent = append(silent, nodes[i])
			first = errors.Join(first, a.err)
		}
	}
	if silent == nil {
		return out, nil
	}
	slices.Sort(silent)
	return out, lode.Errorf(lode.Unavailable, "blobs were listed in part: %s: %w", doNotAnswer(silent), first)
}

// oneLine joins the reasons of several nodes.
func oneLine(errs []error) string {
	var out []string
	for _, err := range errs {
		if s := err.Error(); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return strings.Join(out, "; ")
}
