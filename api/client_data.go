package api

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"lode"
)

// ListDatasets lists datasets.
func (c *Client) ListDatasets(ctx context.Context, p Page) (l List[Dataset], err error) {
	err = c.do(ctx, http.MethodGet, path("datasets"), paged(p, nil), nil, &l, "")
	return l, err
}

func numbers(q url.Values, key string, n int64) {
	if n != 0 {
		q.Set(key, strconv.FormatInt(n, 10))
	}
}

// GetDataset describes a version; 0 is the newest.
func (c *Client) GetDataset(ctx context.Context, name lode.Name, version int) (v Dataset, err error) {
	q := url.Values{}
	numbers(q, "version", int64(version))
	err = c.do(ctx, http.MethodGet, path("datasets/%s", string(name)), q, nil, &v, "")
	return v, err
}

// GetManifest is the manifest of a version; 0 is the newest.
func (c *Client) GetManifest(ctx context.Context, name lode.Name, version int) (v lode.Manifest, err error) {
	q := url.Values{}
	numbers(q, "version", int64(version))
	err = c.do(ctx, http.MethodGet, path("datasets/%s/manifest", string(name)), q, nil, &v, "")
	return v, err
}

// PutDataset uploads files as one new version. The size of each must be
// known. An error of files ends the upload, and nothing of it is kept.
func (c *Client) PutDataset(ctx context.Context, name lode.Name, o PutOptions, files Files) (Dataset, error) {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(writeTar(pw, files))
	}()
	v, err := c.upload(ctx, name, o, tarType, nil, pr)
	pr.CloseWithError(io.ErrClosedPipe) // the node may have answered before the end
	<-done
	return v, err
}

// PutStream uploads one body of any length as one file of the given name.
func (c *Client) PutStream(ctx context.Context, name lode.Name, o PutOptions, file string, r io.Reader) (Dataset, error) {
	return c.upload(ctx, name, o, "application/octet-stream", url.Values{"file": {file}}, r)
}

func (c *Client) upload(ctx context.Context, name lode.Name, o PutOptions, ctype string, q url.Values, r io.Reader) (v Dataset, err error) {
	if q == nil {
		q = url.Values{}
	}
	if o.Records != "" {
		q.Set("records", string(o.Records))
	}
	numbers(q, "shard", o.Shard)
	numbers(q, "copies", int64(o.Copies))
	if o.Append {
		q.Set("append", "1")
	}
	rq := request{method: http.MethodPut, path: path("datasets/%s", string(name)), query: q, body: r, ctype: ctype}
	if o.IfMatch != "" {
		rq.header = http.Header{"If-Match": {quoted(o.IfMatch)}}
	}
	resp, err := c.send(ctx, rq)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	return v, decode(resp, &v)
}

func writeTar(w io.Writer, files Files) error {
	buf := bufio.NewWriterSize(w, 256<<10)
	tw := tar.NewWriter(buf)
	for {
		name, size, r, err := files.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if size < 0 {
			return lode.Errorf(lode.Invalid, "the size of %s is not known", name)
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, Format: tar.FormatPAX}); err != nil {
			return lode.Errorf(lode.Invalid, "%s: %w", name, err)
		}
		if n, err := io.Copy(tw, r); err != nil {
			return err
		} else if n < size {
			return lode.Errorf(lode.Conflict, "%s became shorter while it was read: %d bytes of %d", name, n, size)
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return buf.Flush()
}

// ReadDataset opens the bytes of a version. The caller closes Body; its reader
// ends with the node's error if the node could not go on.
func (c *Client) ReadDataset(ctx context.Context, name lode.Name, o ReadOptions) (Content, error) {
	q := url.Values{}
	numbers(q, "version", int64(o.Version))
	numbers(q, "shard", int64(o.Shard))
	return c.open(ctx, path("datasets/%s/content", string(name)), q)
}

// ReadFiles walks the files of a version.
func (c *Client) ReadFiles(ctx context.Context, name lode.Name, version int, emit func(name string, size int64, r io.Reader) error) error {
	q := url.Values{}
	numbers(q, "version", int64(version))
	v, err := c.open(ctx, path("datasets/%s/files", string(name)), q)
	if err != nil {
		return err
	}
	defer v.Body.Close()
	tr := tar.NewReader(bufio.NewReaderSize(v.Body, 256<<10))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			// The archive's end; what is behind it is the node's last word.
			_, err = io.Copy(io.Discard, v.Body)
			return err
		}
		if err != nil {
			return err
		}
		if err := emit(h.Name, h.Size, tr); err != nil {
			return err
		}
	}
}

// RemoveVersion drops one old version.
func (c *Client) RemoveVersion(ctx context.Context, name lode.Name, version int) error {
	return c.do(ctx, http.MethodDelete, path("datasets/%s/versions/%s", string(name), strconv.Itoa(version)), nil, nil, nil, "")
}

// CollectDatasets frees what nothing names.
func (c *Client) CollectDatasets(ctx context.Context) (v Collected, err error) {
	err = c.do(ctx, http.MethodPost, path("gc"), nil, nil, &v, "")
	return v, err
}

// SetSecret sets a secret.
func (c *Client) SetSecret(ctx context.Context, name string, value []byte) error {
	resp, err := c.send(ctx, request{method: http.MethodPut, path: path("secrets/%s", name), body: bytes.NewReader(value), ctype: "application/octet-stream"})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decode(resp, nil)
}

// ListSecrets lists names of secrets.
func (c *Client) ListSecrets(ctx context.Context, p Page) (l List[Secret], err error) {
	err = c.do(ctx, http.MethodGet, path("secrets"), paged(p, nil), nil, &l, "")
	return l, err
}

// RemoveSecret removes a secret.
func (c *Client) RemoveSecret(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, path("secrets/%s", name), nil, nil, nil, "")
}

// CreateToken makes a token.
func (c *Client) CreateToken(ctx context.Context, s TokenSpec) (v NewToken, err error) {
	body := tokenRequest{Role: s.Role, Namespace: s.Namespace, Seconds: int64(s.For.Seconds()), Note: s.Note, AWS: s.AWS}
	err = c.do(ctx, http.MethodPost, path("tokens"), nil, body, &v, "")
	return v, err
}

// ListTokens lists tokens.
func (c *Client) ListTokens(ctx context.Context, p Page) (l List[Token], err error) {
	err = c.do(ctx, http.MethodGet, path("tokens"), paged(p, nil), nil, &l, "")
	return l, err
}

// RevokeToken takes a token's id.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, path("tokens/%s", id), nil, nil, nil, "")
}

// WhoAmI is what this client may do.
func (c *Client) WhoAmI(ctx context.Context) (v Grant, err error) {
	err = c.do(ctx, http.MethodGet, path("whoami"), nil, nil, &v, "")
	return v, err
}

// ListAudit lists who changed what, newest first.
func (c *Client) ListAudit(ctx context.Context, p Page) (l List[AuditEntry], err error) {
	err = c.do(ctx, http.MethodGet, path("audit"), paged(p, nil), nil, &l, "")
	return l, err
}

// lines reads NDJSON objects until the end.
func lines(r io.Reader, see func([]byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), 4<<20)
	for s.Scan() {
		if len(s.Bytes()) == 0 {
			continue
		}
		if err := see(s.Bytes()); err != nil {
			return err
		}
	}
	return s.Err()
}

func unmarshal(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return lode.Errorf(lode.Internal, "the stream cannot be read: %w", err)
	}
	return nil
}
