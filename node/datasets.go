package node

import (
	"context"
	"encoding/json"
	"io"
	"slices"

	"lode"
	"lode/api"
	"lode/catalog"
	"lode/data"
	"lode/data/job"
	"lode/invoke"
)

// datasets is api.Datasets over data.
type datasets struct{ *Node }

func (d datasets) ListDatasets(ctx context.Context, ns lode.Namespace, p api.Page) (api.List[api.Dataset], error) {
	heads, err := d.data.List(ctx, ns)
	if err != nil {
		return api.List[api.Dataset]{}, err
	}
	var all []api.Dataset
	for _, h := range heads {
		all = append(all, d.dataset(&h, h.Newest()))
	}
	for _, e := range d.catalog.List(ns, catalog.KindDataset) {
		if !slices.ContainsFunc(all, func(v api.Dataset) bool { return v.Name == e.Name }) {
			all = append(all, declared(e))
		}
	}
	return page(all, p, func(v api.Dataset) string { return string(v.Name) }), nil
}

// declared is a dataset that has a declaration and no content yet.
func declared(e *catalog.Entry) api.Dataset {
	return api.Dataset{Name: e.Name, App: e.App, ETag: etag(0), Records: e.Dataset.Records, Spec: e.Dataset, Created: e.Created}
}

func (d datasets) dataset(h *data.Head, v *data.Version) api.Dataset {
	spec := h.Spec
	out := api.Dataset{Name: h.Name, ETag: etag(uint64(h.Newest().Number)), Version: v.Number, Created: v.Created, Records: h.Spec.Records,
		Shards: v.Shards, Bytes: v.Bytes, Count: v.Count, Spec: &spec}
	if e, ok := d.catalog.Lookup(h.Namespace, h.Name); ok {
		out.App = e.App
	}
	for _, k := range slices.Backward(h.Versions) {
		out.Versions = append(out.Versions, k.Number)
	}
	return out
}

func (d datasets) GetDataset(ctx context.Context, ns lode.Namespace, name lode.Name, version int) (api.Dataset, error) {
	h, err := d.data.Show(ctx, ns, name)
	if err != nil {
		if e, ok := d.catalog.Lookup(ns, name); ok && e.Dataset != nil && lode.KindOf(err) == lode.NotFound {
			return declared(e), nil
		}
		return api.Dataset{}, err
	}
	v, err := h.Version(version)
	if err != nil {
		return api.Dataset{}, err
	}
	return d.dataset(h, v), nil
}

func (d datasets) GetManifest(ctx context.Context, ns lode.Namespace, name lode.Name, version int) (lode.Manifest, error) {
	m, _, err := d.data.Manifest(ctx, ns, name, version)
	if err != nil {
		return lode.Manifest{}, err
	}
	return *m, nil
}

// PutDataset commits one new version, or nothing.
func (d datasets) PutDataset(ctx context.Context, ns lode.Namespace, name lode.Name, o api.PutOptions, files api.Files) (api.Dataset, error) {
	if e, ok := d.catalog.Lookup(ns, name); ok && e.Dataset == nil {
		return api.Dataset{}, lode.Errorf(lode.Conflict, "%s is a %s of app %s", name, e.Kind, e.App).WithHint("choose another name for the dataset")
	}
	if err := d.expect(ctx, ns, name, o.IfMatch); err != nil {
		return api.Dataset{}, err
	}
	spec := lode.Dataset{Records: o.Records, Shard: o.Shard, Copies: o.Copies}
	if e, ok := d.catalog.Lookup(ns, name); ok {
		spec = overlay(spec, *e.Dataset)
	}
	if _, err := d.data.Put(ctx, ns, name, data.PutOptions{Append: o.Append, Spec: spec}, files); err != nil {
		return api.Dataset{}, err
	}
	return d.GetDataset(ctx, ns, name, 0)
}

// overlay fills what the put does not say from the declaration.
func overlay(s, declared lode.Dataset) lode.Dataset {
	if s.Records == "" {
		s.Records = declared.Records
	}
	if s.Shard == 0 {
		s.Shard = declared.Shard
	}
	if s.Copies == 0 {
		s.Copies = declared.Copies
	}
	if s.Keep == 0 {
		s.Keep = declared.Keep
	}
	return s
}

// expect holds an If-Match against the newest version.
func (d datasets) expect(ctx context.Context, ns lode.Namespace, name lode.Name, ifMatch string) error {
	if ifMatch == "" {
		return nil
	}
	h, err := d.data.Show(ctx, ns, name)
	if err != nil && lode.KindOf(err) != lode.NotFound {
		return err
	}
	if err != nil || ifMatch != "*" && ifMatch != etag(uint64(h.Newest().Number)) {
		return lode.Errorf(lode.Precondition, "dataset %s is not at %s any more", name, ifMatch).WithHint("look at it again: lode data show %s", name)
	}
	return nil
}

func (d datasets) ReadDataset(ctx context.Context, ns lode.Namespace, name lode.Name, o api.ReadOptions, w io.Writer) error {
	m, _, err := d.data.Manifest(ctx, ns, name, o.Version)
	if err != nil {
		return err
	}
	if o.Shard > 0 {
		return d.data.CatShard(ctx, m, o.Shard-1, w)
	}
	return d.data.Cat(ctx, m, w)
}

func (d datasets) ReadFiles(ctx context.Context, ns lode.Namespace, name lode.Name, version int, emit func(string, int64, io.Reader) error) error {
	m, _, err := d.data.Manifest(ctx, ns, name, version)
	if err != nil {
		return err
	}
	return d.data.Files(ctx, m, emit)
}

func (d datasets) RemoveVersion(ctx context.Context, ns lode.Namespace, name lode.Name, version int) error {
	return d.data.RemoveVersion(ctx, ns, name, version)
}

// CollectDatasets frees what nothing names. The grace protects uploads and
// jobs under way.
func (d datasets) CollectDatasets(ctx context.Context, ns lode.Namespace) (api.Collected, error) {
	var out api.Collected
	err := d.coordinate(ctx, ns, true, func(own *job.Jobs) error {
		c, err := d.data.Collect(ctx, data.DefaultGrace, own.Roots)
		out = api.Collected{Blobs: c.Blobs, Bytes: c.Bytes}
		return err
	}, func(far *api.Client) (err error) { out, err = far.CollectDatasets(ctx); return err })
	return out, err
}

// datasetOps serves the guests' operation data.
type datasetOps struct{ d *data.Datasets }

// shown is what a guest sees of a version.
type shown struct {
	Name    lode.Name    `json:"name"`
	Version int          `json:"version"`
	Records lode.Records `json:"records"`
	Bytes   int64        `json:"bytes"`
	Count   int64        `json:"count"`
	Shards  []shownShard `json:"shards"`
}

type shownShard struct {
	Bytes int64 `json:"bytes"`
	Count int64 `json:"count"`
}

func (o datasetOps) Show(ctx context.Context, ns lode.Namespace, name lode.Name, version int) ([]byte, error) {
	m, _, err := o.d.Manifest(ctx, ns, name, version)
	if err != nil {
		return nil, err
	}
	s := shown{Name: m.Name, Version: m.Version, Records: m.Records, Bytes: m.Bytes, Count: m.Count, Shards: make([]shownShard, len(m.Shards))}
	for i, sh := range m.Shards {
		s.Shards[i] = shownShard{sh.Bytes, sh.Count}
	}
	return json.Marshal(s)
}

func (o datasetOps) Read(ctx context.Context, ns lode.Namespace, name lode.Name, version, shard int, offset, length int64) ([]byte, error) {
	m, _, err := o.d.Manifest(ctx, ns, name, version)
	if err != nil {
		return nil, err
	}
	if shard < 0 || shard >= len(m.Shards) {
		return nil, lode.Errorf(lode.NotFound, "dataset %s has no shard %d", name, shard).WithHint("it has %d, counted from 0", len(m.Shards))
	}
	return o.d.ReadShard(ctx, m, shard, offset, length)
}

// Index tells the files of a shard of a dataset of files.
func (o datasetOps) Index(ctx context.Context, ns lode.Namespace, name lode.Name, version, shard int) ([]byte, error) {
	m, _, err := o.d.Manifest(ctx, ns, name, version)
	if err != nil {
		return nil, err
	}
	if shard < 0 || shard >= len(m.Shards) {
		return nil, lode.Errorf(lode.NotFound, "dataset %s has no shard %d", name, shard)
	}
	idx, err := o.d.Index(ctx, m, shard)
	if err != nil {
		return nil, err
	}
	return json.Marshal(idx)
}

var (
	_ api.Datasets    = datasets{}
	_ invoke.Datasets = datasetOps{}
)
