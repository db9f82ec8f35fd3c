package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"time"

	"lode"
	"lode/link"
	"lode/store"
)

// remote is another node's side of a store.
type remote struct {
	l     *link.Link
	store string
	node  lode.NodeID
}

var _ store.Remote = (*remote)(nil)

// Remote is what node holds of the store of that name, over l. Its errors are
// those of the node, and of l: of kind Unavailable for a node that does not
// answer.
func Remote(l *link.Link, store string, node lode.NodeID) store.Remote {
	return &remote{l, store, node}
}

// call makes one call whose answer is small.
func (r *remote) call(ctx context.Context, method string, q request, body []byte, stream io.Reader) (*link.Bytes, error) {
	a := &link.Bytes{Max: maxQueries}
	return a, r.stream(ctx, method, q, body, stream, a)
}

func (r *remote) stream(ctx context.Context, method string, q request, body []byte, stream io.Reader, a link.Answer) error {
	q.store = r.store
	return r.l.Call(ctx, r.node, &link.Request{Method: method, Head: appendRequest(nil, method, q), Body: body, Stream: stream}, a)
}

// Put implements store.Remote. A short blob goes with the call; a longer one
// is offered first.
func (r *remote) Put(ctx context.Context, d lode.Digest, src *io.SectionReader, as store.PutAs) (store.Info, error) {
	q := request{digest: d, size: src.Size(), modified: as.Modified}
	if as.Repair {
		q.flags = flagRepair
	}
	if q.size <= link.MaxBody {
		body := make([]byte, q.size)
		if n, err := src.ReadAt(body, 0); int64(n) < q.size {
			return store.Info{}, lode.Errorf(lode.Internal, "read blob %s: %w", d, err)
		}
		_, info, err := r.put(ctx, q, body, nil)
		return info, err
	}
	offer := q
	offer.flags |= flagOffer
	done, info, err := r.put(ctx, offer, nil, nil)
	if err != nil || done {
		return info, err
	}
	_, info, err = r.put(ctx, q, nil, io.NewSectionReader(src, 0, q.size))
	return info, err
}

// put makes one call, and reports whether the node has the blob now.
func (r *remote) put(ctx context.Context, q request, body []byte, stream io.Reader) (bool, store.Info, error) {
	a, err := r.call(ctx, methodPut, q, body, stream)
	if err != nil {
		return false, store.Info{}, err
	}
	if len(a.HeadBytes) != 17 {
		return false, store.Info{}, r.garbled(methodPut)
	}
	info, err := parsePlace(q.digest, a.HeadBytes[1:])
	done := a.HeadBytes[0] == stateDone
	if err == nil && !done && q.flags&flagOffer == 0 {
		err = r.garbled(methodPut) // it must not count as acknowledged
	}
	return done, info, err
}

func (r *remote) garbled(method string) error {
	return lode.Errorf(lode.Internal, "node %s gave no proper answer to %s", r.node, method).WithHint("do all nodes run the same version? lode nodes shows it")
}

// Get implements store.Remote.
func (r *remote) Get(ctx context.Context, d lode.Digest, w io.Writer) error {
	a := &content{to: w}
	if err := r.stream(ctx, methodGet, request{digest: d}, nil, nil, a); err != nil {
		return err
	}
	if a.left != 0 {
		return lode.Errorf(lode.Unavailable, "node %s ended blob %s %d bytes early", r.node, d, a.left)
	}
	return nil
}

// content is the answer to blob.get.
type content struct {
	to   io.Writer
	left int64
}

func (c *content) Head(b []byte) error {
	if len(b) != 8 {
		return lode.Errorf(lode.Invalid, "the head of a blob has %d bytes, not 8", len(b))
	}
	c.left = int64(binary.BigEndian.Uint64(b))
	return nil
}

func (c *content) Write(p []byte) (int, error) {
	if c.left -= int64(len(p)); c.left < 0 {
		return 0, lode.Errorf(lode.Invalid, "a blob is longer than its head says")
	}
	return c.to.Write(p)
}

// Have implements store.Remote.
func (r *remote) Have(ctx context.Context, qs []store.Query, verify bool) ([]store.Held, error) {
	out := make([]store.Held, 0, len(qs))
	var q request
	if verify {
		q.flags = flagVerify
	}
	for len(qs) > 0 {
		part := qs[:min(len(qs), maxQueries)]
		qs = qs[len(part):]
		a, err := r.call(ctx, methodHave, q, appendQueries(nil, part), nil)
		if err != nil {
			return nil, err
		}
		held, err := parseHeld(a.Body, len(part))
		if err != nil {
			return nil, err
		}
		out = append(out, held...)
	}
	return out, nil
}

// Stat implements store.Remote.
func (r *remote) Stat(ctx context.Context, d lode.Digest) (store.Info, error) {
	a, err := r.call(ctx, methodStat, request{digest: d}, nil, nil)
	if err != nil {
		return store.Info{}, err
	}
	return parsePlace(d, a.HeadBytes)
}

// Delete implements store.Remote.
func (r *remote) Delete(ctx context.Context, d lode.Digest, before time.Time) (bool, error) {
	a, err := r.call(ctx, methodDelete, request{digest: d, modified: before}, nil, nil)
	if err != nil {
		return false, err
	}
	if len(a.HeadBytes) != 1 {
		return false, r.garbled(methodDelete)
	}
	return a.HeadBytes[0] == 1, nil
}

// List implements store.Remote.
func (r *remote) List(ctx context.Context) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		a := &records{yield: yield}
		err := r.stream(ctx, methodList, request{}, nil, nil, a)
		if err == nil && len(a.part) > 0 {
			err = r.garbled(methodList)
		}
		if err != nil && !errors.Is(err, errEnough) {
			yield(store.Info{}, err)
		}
	}
}

var errEnough = errors.New("no more is wanted")

// records is the answer to blob.list: whole records as they come.
type records struct {
	yield func(store.Info, error) bool
	part  []byte // the beginning of a record
}

func (r *records) Head([]byte) error { return nil }

func (r *records) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		take := min(infoSize-len(r.part), len(p))
		r.part = append(r.part, p[:take]...)
		p = p[take:]
		if len(r.part) < infoSize {
			break
		}
		info, err := parseInfo(r.part)
		if err != nil {
			return 0, err
		}
		r.part = r.part[:0]
		if !r.yield(info, nil) {
			return 0, errEnough
		}
	}
	return n, nil
}

// Bad implements store.Remote.
func (r *remote) Bad(ctx context.Context, d lode.Digest) error {
	_, err := r.call(ctx, methodBad, request{digest: d}, nil, nil)
	return err
}
