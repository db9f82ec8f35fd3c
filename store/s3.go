package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"lode"
)

// S3Config names a bucket and how to get in.
type S3Config struct {
	// Endpoint is a URL: https://s3.eu-central-1.amazonaws.com, or
	// http://127.0.0.1:7070. http is plain text: loopback and tests. Empty
	// means https://s3.amazonaws.com.
	Endpoint string
	// Region as the bucket's provider names it; empty lets the client ask.
	Region string
	// Bucket must exist unless Create is set.
	Bucket string
	// Prefix goes before every key, as "lode/"; a missing final slash is added.
	Prefix string
	// Access and Secret are the key pair. Both empty: the environment
	// (AWS_ACCESS_KEY_ID ...), then the shared credentials file, then the
	// machine's role.
	Access, Secret string
	// Create makes a missing bucket.
	Create bool
	// Retries of one request, 3 where it is 0.
	Retries int
}

// S3 is a home in an S3-compatible bucket. An upload is one object, so it is
// visible when it is whole.
type S3 struct {
	client *minio.Client
	idle   func() // closes idle connections
	bucket string
	prefix string
	place  string
}

var (
	_ Home      = (*S3)(nil)
	_ io.Closer = (*S3)(nil)
)

// Close closes the connections that nobody uses. Idempotent.
func (h *S3) Close() error {
	h.idle()
	return nil
}

// ParseS3 reads s3://BUCKET[/PREFIX] into the two fields of an S3Config.
func ParseS3(s string) (S3Config, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return S3Config{}, lode.Errorf(lode.Invalid, "%q is not a bucket: want s3://BUCKET or s3://BUCKET/PREFIX", s)
	}
	return S3Config{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}, nil
}

// OpenS3 connects and checks that the bucket is there.
func OpenS3(ctx context.Context, cfg S3Config) (*S3, error) {
	if cfg.Endpoint == "" {
		cfg.Endpoint = "https://s3.amazonaws.com"
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, lode.Errorf(lode.Invalid, "S3 endpoint %q is not a URL", cfg.Endpoint).WithHint("for example http://127.0.0.1:7070")
	}
	transport, err := minio.DefaultTransport(u.Scheme == "https")
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "reach S3 endpoint %q: %w", cfg.Endpoint, err)
	}
	client, err := minio.New(u.Host, &minio.Options{Transport: transport, Creds: cfg.credentials(), Secure: u.Scheme == "https", Region: cfg.Region,
		MaxRetries: cmp.Or(cfg.Retries, 3), TrailingHeaders: true})
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "S3 endpoint %q: %w", cfg.Endpoint, err)
	}
	h := &S3{client: client, idle: transport.CloseIdleConnections, bucket: cfg.Bucket, prefix: cfg.Prefix}
	if h.prefix != "" && !strings.HasSuffix(h.prefix, "/") {
		h.prefix += "/"
	}
	h.place = fmt.Sprintf("s3://%s/%s", h.bucket, h.prefix)
	if err := h.checkBucket(ctx, cfg); err != nil {
		h.idle()
		return nil, err
	}
	return h, nil
}

func (c S3Config) credentials() *credentials.Credentials {
	if c.Access != "" || c.Secret != "" {
		return credentials.NewStaticV4(c.Access, c.Secret, "")
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{}})
}

func (h *S3) checkBucket(ctx context.Context, cfg S3Config) error {
	ok, err := h.client.BucketExists(ctx, h.bucket)
	if err != nil {
		return h.fail("reach bucket "+h.bucket, err)
	}
	if ok {
		return nil
	}
	if !cfg.Create {
		return lode.Errorf(lode.NotFound, "bucket %q does not exist at %s", h.bucket, cfg.Endpoint).WithHint("make it first")
	}
	err = h.client.MakeBucket(ctx, h.bucket, minio.MakeBucketOptions{Region: cfg.Region})
	if minio.ToErrorResponse(err).Code == minio.BucketAlreadyOwnedByYou {
		return nil // another node was first
	}
	return h.fail("make bucket "+h.bucket, err)
}

// String is s3://bucket/prefix/.
func (h *S3) String() string { return h.place }

func (h *S3) key(d lode.Digest) string { return h.prefix + "blobs/" + d.String() }

// Put implements Home.
func (h *S3) Put(ctx context.Context, d lode.Digest, src *io.SectionReader) error {
	doing := "put blob " + d.String() + " to " + h.place
	info, err := h.client.PutObject(ctx, h.bucket, h.key(d), io.NewSectionReader(src, 0, src.Size()), src.Size(),
		minio.PutObjectOptions{ContentType: "application/octet-stream", NumThreads: 2, SendContentMd5: true})
	if err != nil {
		return h.fail(doing, err)
	}
	if info.Size != src.Size() {
		return lode.Errorf(lode.Unavailable, "%s: %d of %d bytes arrived", doing, info.Size, src.Size())
	}
	return nil
}

// Get implements Home.
func (h *S3) Get(ctx context.Context, d lode.Digest) (io.ReadCloser, error) {
	obj, err := h.client.GetObject(ctx, h.bucket, h.key(d), minio.GetObjectOptions{})
	if err != nil {
		return nil, h.missing(d, "get", err)
	}
	if _, err := obj.Stat(); err != nil { // the first request is sent here
		obj.Close()
		return nil, h.missing(d, "get", err)
	}
	return obj, nil
}

// Stat implements Home.
func (h *S3) Stat(ctx context.Context, d lode.Digest) (Info, error) {
	info, err := h.client.StatObject(ctx, h.bucket, h.key(d), minio.StatObjectOptions{})
	if err != nil {
		return Info{}, h.missing(d, "stat", err)
	}
	return Info{d, info.Size, info.LastModified}, nil
}

// Delete implements Home.
func (h *S3) Delete(ctx context.Context, d lode.Digest) error {
	err := h.client.RemoveObject(ctx, h.bucket, h.key(d), minio.RemoveObjectOptions{})
	if err = h.missing(d, "delete", err); lode.KindOf(err) == lode.NotFound {
		return nil
	}
	return err
}

// List implements Home.
func (h *S3) List(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		ctx, stop := context.WithCancel(ctx)
		defer stop() // ends the client's pager where yield ends early
		prefix := h.prefix + "blobs/"
		for obj := range h.client.ListObjectsIter(ctx, h.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if obj.Err != nil {
				yield(Info{}, h.fail("list "+h.place, obj.Err))
				return
			}
			d, ok := parseDigest(strings.TrimPrefix(obj.Key, prefix))
			if ok && !yield(Info{d, obj.Size, obj.LastModified}, nil) {
				return
			}
		}
		if err := cancelled(ctx); err != nil {
			yield(Info{}, err)
		}
	}
}

func (h *S3) missing(d lode.Digest, verb string, err error) error {
	if err == nil {
		return nil
	}
	if r := minio.ToErrorResponse(err); r.Code == minio.NoSuchKey || r.StatusCode == http.StatusNotFound && r.Code != minio.NoSuchBucket {
		return notFound(d, h.place)
	}
	return h.fail(verb+" blob "+d.String()+" at "+h.place, err)
}

// fail gives an error of the client its kind.
func (h *S3) fail(doing string, err error) error {
	if err == nil {
		return nil
	}
	r := minio.ToErrorResponse(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return lode.Errorf(lode.Deadline, "%s: %w", doing, err)
	case errors.Is(err, context.Canceled):
		return lode.Errorf(lode.Cancelled, "%s: %w", doing, err)
	case isFull(err) || r.StatusCode == http.StatusInsufficientStorage || r.Code == "QuotaExceeded" || r.Code == "XMinioStorageFull":
		return lode.Errorf(lode.Full, "%s: %w", doing, err).WithHint("raise the bucket's quota, or lower what is kept (lode data gc)")
	case r.StatusCode == http.StatusForbidden || r.StatusCode == http.StatusUnauthorized:
		return lode.Errorf(lode.Denied, "%s: %w", doing, err).WithHint("check the access key, its policy and the clock")
	case r.Code == minio.NoSuchBucket:
		return lode.Errorf(lode.NotFound, "%s: %w", doing, err).WithHint("make bucket %q first", h.bucket)
	case r.StatusCode >= 400 && r.StatusCode < 500 && r.StatusCode != http.StatusTooManyRequests && r.StatusCode != http.StatusRequestTimeout:
		return lode.Errorf(lode.Internal, "%s: %w", doing, err)
	}
	e := lode.Errorf(lode.Unavailable, "%s: %w", doing, err).WithHint("is the object store up and reachable from this node?")
	e.RetryAfter = time.Second
	return e
}
