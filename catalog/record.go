package catalog

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"lode"
)

// The keys and formats of what the catalog stores:
//
//	table catalog    head             the newest change: an appRecord
//	                 app/NS/APP       the state of an app: an appRecord
//	table revisions  NS/NAME/DIGEST   canonical JSON of a lode.Function
//	table secrets    NS/NAME          a sealed value, see Sealer
//
// An appRecord is stored as one byte of version, 1, and the zstd frame of its
// JSON. The canonical JSON of a Function is what encoding/json makes of it;
// its BLAKE3-256 is the revision's digest.
const (
	headKey       = "head"
	recordVersion = 1
	keepFor       = 7 * 24 * time.Hour // of what was removed

	// keepRevisions is how many revisions of a function are kept beside those
	// that an alias names.
	keepRevisions = 50
	// recordMax keeps an app's record well below what a table takes.
	recordMax = 900 << 10
)

func appKey(ns lode.Namespace, app lode.Name) string { return "app/" + string(ns) + "/" + string(app) }

func revisionKey(ns lode.Namespace, name lode.Name, d lode.Digest) string {
	return string(ns) + "/" + string(name) + "/" + d.String()
}

// appRecord is the whole state of one app.
type appRecord struct {
	Gen       uint64                    `json:"gen"` // of the change that made it; 1, 2, 3 ... over all apps
	Txn       string                    `json:"txn"` // random: tells two changes of one Gen apart
	Namespace lode.Namespace            `json:"namespace"`
	App       lode.Name                 `json:"app"`
	Changed   time.Time                 `json:"changed"`
	By        string                    `json:"by,omitempty"`
	Names     map[lode.Name]*nameRecord `json:"names,omitempty"`
}

// Kind is what a name names.
type Kind string

// The kinds of names.
const (
	KindFunction Kind = "function"
	KindAgent    Kind = "agent" // a kind of agents
	KindQueue    Kind = "queue"
	KindDataset  Kind = "dataset"
)

// nameRecord is one name of an app. It is never changed in place.
type nameRecord struct {
	Kind    Kind      `json:"kind"`
	Created time.Time `json:"created"`
	// Removed is set on what was removed. It can be brought back until then +
	// keepFor, unless Erased is set.
	Removed time.Time `json:"removed,omitzero"`
	Erased  bool      `json:"erased,omitempty"`

	Revs    []revRecord  `json:"revs,omitempty"` // functions and kinds: by number
	Last    int          `json:"last,omitempty"` // highest number given
	Aliases []lode.Alias `json:"aliases,omitempty"`

	Partitions int    `json:"partitions,omitempty"` // kinds: fixed while there is state
	Born       uint64 `json:"born,omitempty"`       // kinds: Gen of the change that their state began with

	Queue    *lode.Queue   `json:"queue,omitempty"`
	Implicit bool          `json:"implicit,omitempty"` // made because a function names the queue
	Dataset  *lode.Dataset `json:"dataset,omitempty"`
}

type revRecord struct {
	Number  int         `json:"n"`
	Digest  lode.Digest `json:"d"`
	Created time.Time   `json:"t"`
}

func (n *nameRecord) live() bool { return n != nil && n.Removed.IsZero() }

func (n *nameRecord) rev(number int) (revRecord, bool) {
	for _, r := range n.Revs {
		if r.Number == number {
			return r, true
		}
	}
	return revRecord{}, false
}

func (n *nameRecord) alias(word string) (lode.Alias, bool) {
	for _, a := range n.Aliases {
		if a.Name == word {
			return a, true
		}
	}
	return lode.Alias{}, false
}

// setAlias replaces an alias; no targets removes it.
func (n *nameRecord) setAlias(a lode.Alias) {
	n.Aliases = slices.DeleteFunc(slices.Clone(n.Aliases), func(b lode.Alias) bool { return b.Name == a.Name })
	if len(a.Targets) > 0 {
		n.Aliases = append(n.Aliases, a)
	}
	slices.SortFunc(n.Aliases, func(a, b lode.Alias) int {
		if (a.Name == lode.LiveAlias) != (b.Name == lode.LiveAlias) { // live comes first
			if a.Name == lode.LiveAlias {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// mainRev is the revision that most calls of an alias go to; among equals the
// newest.
func mainRev(a lode.Alias) int {
	best := lode.Target{}
	for _, t := range a.Targets {
		if t.Weight > best.Weight || t.Weight == best.Weight && t.Rev > best.Rev {
			best = t
		}
	}
	return best.Rev
}

// trim drops the oldest revisions that no alias names, beyond keep.
func (n *nameRecord) trim(keep int) {
	named := make(map[int]bool)
	for _, a := range n.Aliases {
		for _, t := range a.Targets {
			named[t.Rev] = true
		}
	}
	spare := len(n.Revs) - keep
	var out []revRecord
	for _, r := range n.Revs {
		if spare > 0 && !named[r.Number] {
			spare--
			continue
		}
		out = append(out, r)
	}
	n.Revs = out
}

func (r *appRecord) clone() *appRecord {
	c := *r
	c.Names = make(map[lode.Name]*nameRecord, len(r.Names))
	for name, n := range r.Names {
		c.Names[name] = n
	}
	return &c
}

// edit replaces a name by a copy that may be changed.
func (r *appRecord) edit(name lode.Name) *nameRecord {
	c := *r.Names[name]
	r.Names[name] = &c
	return &c
}

// encode writes the record; history that does not fit is dropped, the oldest
// first.
func (r *appRecord) encode() ([]byte, error) {
	for keep := keepRevisions; ; keep /= 2 {
		for name, n := range r.Names {
			if len(n.Revs) > max(keep, 1) {
				r.edit(name).trim(max(keep, 1))
			}
		}
		b, err := json.Marshal(r)
		if err != nil {
			return nil, lode.Errorf(lode.Internal, "write app %s: %w", r.App, err)
		}
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			return nil, lode.Errorf(lode.Internal, "write app %s: %w", r.App, err)
		}
		out := enc.EncodeAll(b, []byte{recordVersion})
		if len(out) <= recordMax {
			return out, nil
		}
		if keep <= 1 {
			return nil, lode.Errorf(lode.TooLarge, "app %s has too many names: its record would have %d bytes, at most %d", r.App, len(out), recordMax).
				WithHint("split it into several apps")
		}
	}
}

func decodeApp(b []byte) (*appRecord, error) {
	if len(b) == 0 || b[0] != recordVersion {
		return nil, lode.Errorf(lode.Damaged, "a record of the catalog has an unknown version")
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "read the catalog: %w", err)
	}
	defer dec.Close()
	raw, err := dec.DecodeAll(b[1:], nil)
	if err != nil {
		return nil, lode.Errorf(lode.Damaged, "a record of the catalog cannot be unpacked: %w", err)
	}
	var r appRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, lode.Errorf(lode.Damaged, "a record of the catalog cannot be read: %w", err)
	}
	for name, n := range r.Names {
		if n == nil {
			return nil, lode.Errorf(lode.Damaged, "the record of app %s has nothing under %s", r.App, name)
		}
	}
	return &r, nil
}

// canonical is the stored form of a function, and its digest.
func canonical(f *lode.Function) ([]byte, lode.Digest, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, lode.Digest{}, lode.Errorf(lode.Invalid, "a function cannot be written as JSON: %w", err)
	}
	return b, lode.Digest(blake3.Sum256(b)), nil
}
