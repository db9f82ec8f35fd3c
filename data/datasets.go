package data

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"time"

	"lode"
	"lode/store"
)

// The bounds of a dataset's declared values, and what a zero becomes.
const (
	DefaultShard = 32 << 20 // bytes; smaller ones move faster, larger ones scan faster
	MinShard     = 64 << 10
	MaxShard     = MaxRecord
	DefaultKeep  = 10 // versions
	MaxKeep      = 1000
)

// longPut is the length of a put behind which its shards are looked for before
// they are committed.
const longPut = 10 * time.Minute

// Config says what Datasets work with.
type Config struct {
	Store     *store.Store // required
	Registers Registers    // required
	Now       func() time.Time
	Log       *slog.Logger
}

// Datasets are the datasets of a node. All methods may be called at the same
// time, also by other nodes over the same registers and home.
type Datasets struct {
	store *store.Store
	regs  Registers
	now   func() time.Time
	log   *slog.Logger
}

// New makes the service. It owns no goroutine.
func New(cfg Config) (*Datasets, error) {
	if cfg.Store == nil || cfg.Registers == nil {
		return nil, lode.Errorf(lode.Invalid, "datasets need a store and registers")
	}
	s := &Datasets{cfg.Store, cfg.Registers, cfg.Now, cfg.Log}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	return s, nil
}

// Head is what a dataset's register holds.
type Head struct {
	Namespace lode.Namespace `json:"namespace"`
	Name      lode.Name      `json:"name"`
	Spec      lode.Dataset   `json:"spec"`
	Versions  []Version      `json:"versions"` // oldest first; at least one
}

// Newest is the version that is read where none is named.
func (h *Head) Newest() *Version { return &h.Versions[len(h.Versions)-1] }

// Version is one version of a dataset, as history shows it.
type Version struct {
	Number   int         `json:"version"`
	Manifest lode.Digest `json:"manifest"`
	Created  time.Time   `json:"created"`
	Shards   int         `json:"shards"`
	Bytes    int64       `json:"bytes"`
	Count    int64       `json:"count"`  // records
	Commit   string      `json:"commit"` // random; tells a commit from an equal one
}

// PutOptions say how files become a version.
type PutOptions struct {
	// Append adds to the newest version; else the files are all there is.
	Append bool
	// Spec: zero fields keep what the dataset has, else become the defaults;
	// Records is then taken from the first file's suffix.
	Spec lode.Dataset
	// Progress, if not nil, is called from the putting goroutine.
	Progress func(Progress)
}

// Put reads all files and commits them as one new version, or nothing. It
// makes the dataset unless it appends. Two at once are both kept, one after
// the other.
func (s *Datasets) Put(ctx context.Context, ns lode.Namespace, name lode.Name, o PutOptions, in Uploads) (*lode.Manifest, error) {
	if _, err := lode.ParseName(string(name)); err != nil {
		return nil, err
	}
	if _, err := lode.ParseName(string(ns)); err != nil {
		return nil, err
	}
	look := s.find
	if o.Append {
		look = s.load
	}
	head, _, err := look(ctx, ns, name)
	if err != nil && (o.Append || lode.KindOf(err) != lode.NotFound) {
		return nil, err
	}
	var header []byte
	if o.Append {
		m, err := s.manifest(ctx, head.Newest().Manifest)
		if err != nil {
			return nil, err
		}
		header = m.Header
	}
	begin := s.now()
	files := &peeked{Uploads: in}
	spec, f, err := resolve(o, head, files)
	if err != nil {
		return nil, err
	}
	if spec.Copies > 0 {
		ctx = store.WithCopies(ctx, spec.Copies)
	}
	parts, err := split(ctx, s.store, f, spec.Shard, header, files, o.Progress)
	if err != nil {
		return nil, err
	}
	if s.now().Sub(begin) > longPut {
		if err := s.stillThere(ctx, parts.out); err != nil {
			return nil, err
		}
	}
	return s.commit(ctx, change{ns: ns, name: name, spec: spec, add: o.Append, header: parts.header, shards: parts.out})
}

// stillThere looks for shards that took so long to put that a collection may
// have taken them for leftovers.
func (s *Datasets) stillThere(ctx context.Context, shards []lode.Shard) error {
	for i, sh := range shards {
		ok, err := s.store.Has(ctx, sh.Digest)
		if err != nil {
			return err
		}
		if !ok {
			return lode.Errorf(lode.Unavailable, "shard %d was collected before the put ended", i).WithHint("put in smaller parts, with append")
		}
	}
	return nil
}

// peeked lets the first file's name be seen before it is split.
type peeked struct {
	Uploads
	first *upload // looked at, not yet handed out
}

type upload struct {
	name string
	size int64
	r    io.Reader
	err  error
}

func (p *peeked) peek() *upload {
	if p.first == nil {
		p.first = &upload{}
		p.first.name, p.first.size, p.first.r, p.first.err = p.Uploads.Next()
	}
	return p.first
}

// Next implements Uploads.
func (p *peeked) Next() (string, int64, io.Reader, error) {
	if u := p.first; u != nil {
		p.first = nil
		return u.name, u.size, u.r, u.err
	}
	return p.Uploads.Next()
}

// resolve fills the spec's zero fields and checks it.
func resolve(o PutOptions, head *Head, in *peeked) (lode.Dataset, form, error) {
	spec := o.Spec
	var old lode.Dataset
	if head != nil {
		old = head.Spec
	}
	spec.Shard = firstSet(spec.Shard, old.Shard, DefaultShard)
	spec.Keep = firstSet(spec.Keep, old.Keep, DefaultKeep)
	spec.Copies = firstSet(spec.Copies, old.Copies, 2)
	spec.Records = firstSet(spec.Records, old.Records)
	if spec.Records == "" {
		u := in.peek()
		if u.err == io.EOF {
			return spec, form{}, lode.Errorf(lode.Invalid, "no files, so the record form must be named").WithHint("--records lines")
		}
		if u.err != nil {
			return spec, form{}, cutShort("the upload", u.err)
		}
		spec.Records = DetectRecords(u.name)
	}
	if len(spec.From) == 0 {
		spec.From = old.From
	}
	if o.Append && spec.Records != old.Records {
		return spec, form{}, lode.Errorf(lode.Invalid, "the dataset has records %s, not %s", old.Records, spec.Records).
			WithHint("put it anew, or append with --records %s", old.Records)
	}
	if spec.Shard < MinShard || spec.Shard > MaxShard {
		return spec, form{}, lode.Errorf(lode.Invalid, "a shard of %d bytes: want %d to %d", spec.Shard, MinShard, MaxShard).WithHint("16MiB to 64MiB is usual")
	}
	if spec.Keep < 1 || spec.Keep > MaxKeep {
		return spec, form{}, lode.Errorf(lode.Invalid, "keep %d versions: want 1 to %d", spec.Keep, MaxKeep)
	}
	f, err := formOf(spec.Records)
	return spec, f, err
}

// firstSet returns the first value that is not zero.
func firstSet[T comparable](vs ...T) (zero T) {
	for _, v := range vs {
		if v != zero {
			return v
		}
	}
	return zero
}

func key(ns lode.Namespace, name lode.Name) string { return string(ns) + "/" + string(name) }

// find reads a dataset's register.
func (s *Datasets) find(ctx context.Context, ns lode.Namespace, name lode.Name) (*Head, uint64, error) {
	value, rev, ok, err := s.regs.Get(ctx, key(ns, name))
	if err != nil {
		return nil, 0, err
	}
	if !ok {
		return nil, 0, lode.Errorf(lode.NotFound, "there is no dataset %q in namespace %s", name, ns)
	}
	h, err := parseHead(value, key(ns, name))
	return h, rev, err
}

// load is find for who wants the dataset to be there: NotFound hints at a name
// that is near, for which all are listed.
func (s *Datasets) load(ctx context.Context, ns lode.Namespace, name lode.Name) (*Head, uint64, error) {
	h, rev, err := s.find(ctx, ns, name)
	if lode.KindOf(err) != lode.NotFound {
		return h, rev, err
	}
	e := lode.AsError(err)
	var names []string
	if all, err := s.List(ctx, ns); err == nil {
		for _, h := range all {
			names = append(names, string(h.Name))
		}
	}
	if near := lode.Suggest(string(name), names); near != "" {
		return nil, 0, e.WithHint("did you mean %q?", near)
	}
	return nil, 0, e.WithHint("lode data put %s FILES makes it", name)
}

func parseHead(value []byte, key string) (*Head, error) {
	h := &Head{}
	if err := json.Unmarshal(value, h); err != nil {
		return nil, lode.Errorf(lode.Damaged, "the register of dataset %s: %w", key, err)
	}
	if len(h.Versions) == 0 {
		return nil, lode.Errorf(lode.Damaged, "the register of dataset %s names no version", key)
	}
	return h, nil
}

// manifest reads and checks a manifest's blob.
func (s *Datasets) manifest(ctx context.Context, d lode.Digest) (*lode.Manifest, error) {
	b, err := s.store.ReadAll(ctx, d, 256<<20)
	if err != nil {
		return nil, err
	}
	m := &lode.Manifest{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, lode.Errorf(lode.Damaged, "manifest %s: %w", d, err)
	}
	return m, nil
}

// Show returns a dataset's register: its spec and the versions that are kept.
func (s *Datasets) Show(ctx context.Context, ns lode.Namespace, name lode.Name) (*Head, error) {
	h, _, err := s.load(ctx, ns, name)
	return h, err
}

// List returns the datasets of a namespace by name; of all for "".
func (s *Datasets) List(ctx context.Context, ns lode.Namespace) ([]Head, error) {
	prefix := ""
	if ns != "" {
		prefix = string(ns) + "/"
	}
	regs, err := s.regs.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	out := []Head{}
	for _, r := range regs {
		if strings.HasPrefix(r.Key, removedPrefix) {
			continue
		}
		h, err := parseHead(r.Value, r.Key)
		if err != nil {
			return nil, err
		}
		out = append(out, *h)
	}
	return out, nil
}

// Manifest returns a version and its digest; 0 is the newest. NotFound for one
// that never was, Gone for one that is not kept any more.
func (s *Datasets) Manifest(ctx context.Context, ns lode.Namespace, name lode.Name, version int) (*lode.Manifest, lode.Digest, error) {
	h, _, err := s.load(ctx, ns, name)
	if err != nil {
		return nil, lode.Digest{}, err
	}
	v, err := h.find(version)
	if err != nil {
		return nil, lode.Digest{}, err
	}
	m, err := s.manifest(ctx, v.Manifest)
	return m, v.Manifest, err
}

// Pinned returns the manifest of that digest, whether its version is still
// kept or not; see Roots for what keeps its blobs.
func (s *Datasets) Pinned(ctx context.Context, manifest lode.Digest) (*lode.Manifest, error) {
	return s.manifest(ctx, manifest)
}

func (h *Head) find(version int) (*Version, error) {
	if version == 0 {
		return h.Newest(), nil
	}
	for i := range h.Versions {
		if h.Versions[i].Number == version {
			return &h.Versions[i], nil
		}
	}
	if version > 0 && version < h.Newest().Number {
		return nil, lode.Errorf(lode.Gone, "version %d of dataset %s is not kept any more", version, h.Name).
			WithHint("the oldest one kept is %d", h.Versions[0].Number)
	}
	return nil, lode.Errorf(lode.NotFound, "dataset %s has no version %d", h.Name, version).WithHint("the newest one is %d", h.Newest().Number)
}

// ended turns a context's end into an error with its kind.
func ended(ctx context.Context) error {
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return lode.Errorf(lode.Deadline, "datasets: %w", err)
	default:
		return lode.Errorf(lode.Cancelled, "datasets: %w", err)
	}
}
