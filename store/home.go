package store

import (
	"context"
	"io"
	"iter"
	"time"

	"lode"
)

// Home is where blobs are durable. Implementations are safe for concurrent
// use, keep content as given, and do not verify digests: Store does.
//
// Errors are *lode.Error: NotFound for a missing blob, Full for a home without
// room, Denied for bad credentials, Unavailable for a home out of reach.
type Home interface {
	// Put stores src under d. When it returns nil the blob is durable and
	// visible; when it fails nothing new is visible. A blob that is there
	// already is replaced (same content, so nobody notices) and its Modified
	// becomes now: a damaged blob is repaired, an old one made young. src may
	// be read more than once.
	Put(ctx context.Context, d lode.Digest, src *io.SectionReader) error
	// Get streams a blob. The caller closes it.
	Get(ctx context.Context, d lode.Digest) (io.ReadCloser, error)
	// Stat describes a blob without reading it.
	Stat(ctx context.Context, d lode.Digest) (Info, error)
	// Delete removes a blob; a missing one is no error.
	Delete(ctx context.Context, d lode.Digest) error
	// List yields every blob, in no order. The first error ends it.
	List(ctx context.Context) iter.Seq2[Info, error]
	// String names the place, for messages: a path, or s3://bucket/prefix.
	String() string
}

// Info describes a blob at its home.
type Info struct {
	Digest   lode.Digest
	Size     int64     // bytes
	Modified time.Time // when it was last put, by the home's clock
}

// local is the ability of a home whose blobs are files of this machine:
// Store uses them in place.
type local interface{ files() *tree }
