package api

import (
	"archive/tar"
	"errors"
	"io"
	"mime"
	"strconv"
	"strings"

	"lode"
)

const tarType = "application/x-tar"

func dataRoutes() []route {
	upload := []param{{"records", "string", "lines, csv, ndjson, files or fixed:N"}, {"shard", "integer", "target bytes of a shard"},
		{"copies", "integer", "replicas"}, {"append", "boolean", "keep the newest version's shards before these"}, {"file", "string", "name of a body that is one file"}}
	return []route{
		{id: "datasets.list", method: "GET", path: "/v1/datasets", role: RoleRead, summary: "List datasets", query: paging, reply: List[Dataset]{}, serve: listDatasets},
		{id: "datasets.get", method: "GET", path: "/v1/datasets/{name}", role: RoleRead, summary: "One dataset", query: version, reply: Dataset{}, serve: getDataset},
		{id: "datasets.put", method: "PUT", path: "/v1/datasets/{name}", role: RoleDeploy, write: true, summary: "Commit a new version: the body is a tar archive of files, or one file; all of it or nothing",
			query: upload, bodyRaw: tarType, reply: Dataset{}, serve: putDataset},
		{id: "datasets.manifest", method: "GET", path: "/v1/datasets/{name}/manifest", role: RoleRead, summary: "Shards of a version", query: version, reply: lode.Manifest{}, serve: getManifest},
		{id: "datasets.content", method: "GET", path: "/v1/datasets/{name}/content", role: RoleCall, summary: "The bytes of a version, in order",
			query: append([]param{{"shard", "integer", "this shard alone; the first is 1"}}, version...), rawType: "application/octet-stream", serve: readDataset},
		{id: "datasets.files", method: "GET", path: "/v1/datasets/{name}/files", role: RoleCall, summary: "The files of a version, as a tar archive", query: version, rawType: tarType, serve: readFiles},
		{id: "datasets.forget", method: "DELETE", path: "/v1/datasets/{name}/versions/{version}", role: RoleDeploy, write: true, summary: "Drop one old version", serve: removeVersion},
		{id: "datasets.collect", method: "POST", path: "/v1/gc", role: RoleDeploy, write: true, summary: "Drop versions beyond keep and bytes that nothing names", reply: Collected{}, serve: collect},
	}
}

// withData runs do with the noun and the name in the path.
func (c *call) withData(do func(Datasets, lode.Name) error) error {
	if c.b.Datasets == nil {
		return missing("datasets")
	}
	return named(c, "name", func(n lode.Name) error { return do(c.b.Datasets, n) })
}

func listDatasets(c *call) error {
	if c.b.Datasets == nil {
		return missing("datasets")
	}
	return listing(c, func(p Page) (List[Dataset], error) { return c.b.Datasets.ListDatasets(c.r.Context(), c.ns, p) })
}

func getDataset(c *call) error {
	return c.withData(func(b Datasets, n lode.Name) error {
		ver, err := c.int("version", 0)
		if err != nil {
			return err
		}
		v, err := b.GetDataset(c.r.Context(), c.ns, n, ver)
		if err != nil {
			return err
		}
		return c.json(v, v.ETag)
	})
}

func getManifest(c *call) error {
	return c.withData(func(b Datasets, n lode.Name) error {
		ver, err := c.int("version", 0)
		if err != nil {
			return err
		}
		v, err := b.GetManifest(c.r.Context(), c.ns, n, ver)
		if err != nil {
			return err
		}
		return c.json(v, "")
	})
}

func (c *call) putOptions() (o PutOptions, err error) {
	q := c.r.URL.Query()
	if o.Records, err = ParseRecords(q.Get("records")); err != nil {
		return o, err
	}
	shard, err := c.int("shard", 0)
	if err != nil {
		return o, err
	}
	o.Shard = int64(shard)
	if o.Copies, err = c.int("copies", 0); err != nil {
		return o, err
	}
	if o.Append, err = c.bool("append"); err != nil {
		return o, err
	}
	o.IfMatch, err = c.ifMatch()
	return o, err
}

// ParseRecords checks a record form; "" is left for the node to choose.
func ParseRecords(s string) (lode.Records, error) {
	switch r := lode.Records(s); r {
	case "", lode.RecordsLines, lode.RecordsCSV, lode.RecordsNDJSON, lode.RecordsFiles:
		return r, nil
	case "parquet", "arrow":
		return "", lode.Errorf(lode.Invalid, "records: %s is not supported yet", s).WithHint("use files: each file is one record then")
	}
	if n, ok := strings.CutPrefix(s, "fixed:"); ok {
		if v, err := strconv.ParseInt(n, 10, 32); err == nil && v > 0 {
			return lode.Records(s), nil
		}
		return "", lode.Errorf(lode.Invalid, "records: %q: want fixed:N with N bytes from 1 on", s)
	}
	e := lode.Errorf(lode.Invalid, "there is no record form %q", s).WithHint("forms: lines, csv, ndjson, files, fixed:N")
	if near := lode.Suggest(s, []string{"lines", "csv", "ndjson", "files", "fixed:"}); near != "" {
		e.WithHint("did you mean %q?", near)
	}
	return "", e
}

func putDataset(c *call) error {
	return c.withData(func(b Datasets, n lode.Name) error {
		o, err := c.putOptions()
		if err != nil {
			return err
		}
		var files Files
		switch mt, _, _ := mime.ParseMediaType(c.r.Header.Get("Content-Type")); mt {
		case tarType, "application/tar":
			files = &tarFiles{r: tar.NewReader(c.r.Body)}
		default:
			name := c.r.URL.Query().Get("file")
			if name == "" {
				name = string(n)
			}
			files = &oneFile{name: name, size: c.r.ContentLength, r: c.r.Body}
		}
		v, err := b.PutDataset(c.r.Context(), c.ns, n, o, files)
		if err != nil {
			return uploadError(err)
		}
		return c.json(v, v.ETag)
	})
}

// uploadError names an upload that broke off for what it is.
func uploadError(err error) error {
	if _, known := errors.AsType[*lode.Error](err); !known && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader)) {
		return lode.Errorf(lode.Invalid, "the upload was cut short: %w", err).WithHint("nothing of it was kept; send it again")
	}
	return err
}

// tarFiles yields the regular files of an archive.
type tarFiles struct{ r *tar.Reader }

var _ Files = (*tarFiles)(nil)

func (t *tarFiles) Next() (string, int64, io.Reader, error) {
	for {
		h, err := t.r.Next()
		if err != nil {
			return "", 0, nil, err
		}
		switch h.Typeflag {
		case tar.TypeReg:
			return h.Name, h.Size, t.r, nil
		case tar.TypeDir, tar.TypeXGlobalHeader:
		default:
			return "", 0, nil, lode.Errorf(lode.Invalid, "%q in the archive is not a regular file", h.Name)
		}
	}
}

// oneFile yields a body as one file.
type oneFile struct {
	name string
	size int64
	r    io.Reader
}

var _ Files = (*oneFile)(nil)

func (o *oneFile) Next() (string, int64, io.Reader, error) {
	if o.r == nil {
		return "", 0, nil, io.EOF
	}
	r := o.r
	o.r = nil
	return o.name, o.size, r, nil
}

func readDataset(c *call) error {
	return c.withData(func(b Datasets, n lode.Name) error {
		var o ReadOptions
		var err error
		if o.Version, err = c.int("version", 0); err != nil {
			return err
		}
		if o.Shard, err = c.int("shard", 0); err != nil {
			return err
		}
		w := &flushWriter{c: c, ctype: "application/octet-stream"}
		if err := b.ReadDataset(c.r.Context(), c.ns, n, o, w); err != nil {
			return c.gone(err)
		}
		w.end()
		return nil
	})
}

func readFiles(c *call) error {
	return c.withData(func(b Datasets, n lode.Name) error {
		ver, err := c.int("version", 0)
		if err != nil {
			return err
		}
		w := tar.NewWriter(&flushWriter{c: c, ctype: tarType})
		err = b.ReadFiles(c.r.Context(), c.ns, n, ver, func(name string, size int64, r io.Reader) error {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, Format: tar.FormatPAX}); err != nil {
				return err
			}
			_, err := io.Copy(w, r)
			return err
		})
		if err != nil {
			return c.gone(err)
		}
		return c.gone(w.Close())
	})
}

func removeVersion(c *call) error {
	return c.withData(func(b Datasets, n lode.Name) error {
		ver, err := strconv.Atoi(c.r.PathValue("version"))
		if err != nil || ver < 1 {
			return lode.Errorf(lode.Invalid, "%q is not a version", c.r.PathValue("version"))
		}
		if err := b.RemoveVersion(c.r.Context(), c.ns, n, ver); err != nil {
			return err
		}
		return c.noContent()
	})
}

func collect(c *call) error {
	if c.b.Datasets == nil {
		return missing("datasets")
	}
	v, err := c.b.Datasets.CollectDatasets(c.r.Context(), c.ns)
	if err != nil {
		return err
	}
	return c.json(v, "")
}
