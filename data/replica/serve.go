package replica

import (
	"context"
	"io"
	"maps"
	"slices"

	"lode"
	"lode/link"
	"lode/store"
)

// Serve answers the blob methods of a link for the stores of this node, by
// name.
func Serve(stores map[string]*store.Shelf) map[string]link.Handler {
	s := shelves(maps.Clone(stores))
	return map[string]link.Handler{
		methodPut: s.with(put), methodGet: s.with(get), methodHave: s.with(have), methodStat: s.with(stat),
		methodDelete: s.with(remove), methodList: s.with(list), methodBad: s.with(bad),
	}
}

type shelves map[string]*store.Shelf

// with parses the head and finds the store.
func (s shelves) with(do func(ctx context.Context, in *link.Incoming, r request, of *store.Shelf) error) link.Handler {
	return func(ctx context.Context, in *link.Incoming) error {
		r, err := parseRequest(in.Method, in.Head)
		if err != nil {
			return err
		}
		of, ok := s[r.store]
		if !ok {
			return lode.Errorf(lode.NotFound, "there is no store %q on this node", r.store).
				WithHint("it has %v: do all nodes run the same version?", slices.Sorted(maps.Keys(s)))
		}
		return do(ctx, in, r, of)
	}
}

func put(ctx context.Context, in *link.Incoming, r request, of *store.Shelf) error {
	as := store.PutAs{Modified: r.modified, Repair: r.flags&flagRepair != 0}
	offer := r.flags&flagOffer != 0
	if offer || in.Stream == nil { // a stream comes after an offer that was not taken
		info, ok, err := of.Offer(ctx, r.digest, as)
		switch {
		case err != nil:
			return err
		case ok:
			return in.Reply(appendPlace([]byte{stateDone}, info), nil)
		case offer:
			return in.Reply(appendPlace([]byte{stateSend}, store.Info{}), nil)
		}
	}
	info, err := of.Receive(ctx, r.digest, in.Whole(), r.size, as)
	if err != nil {
		return err
	}
	return in.Reply(appendPlace([]byte{stateDone}, info), nil)
}

func get(ctx context.Context, in *link.Incoming, r request, of *store.Shelf) error {
	b, size, err := of.Reader(r.digest)
	if err != nil {
		return err
	}
	defer b.Close()
	head := appendPlace(nil, store.Info{Size: size})[:8]
	if size <= link.MaxBody {
		body := make([]byte, size)
		if _, err := io.ReadFull(b, body); err != nil {
			return lode.Errorf(lode.Damaged, "read blob %s: %w", r.digest, err)
		}
		return in.Reply(head, body)
	}
	if err := in.Begin(head); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{in}, struct{ io.Reader }{b}, make([]byte, 64<<10))
	return err
}

func have(ctx context.Context, in *link.Incoming, r request, of *store.Shelf) error {
	qs, err := parseQueries(in.Body)
	if err != nil {
		return err
	}
	held, err := of.Have(ctx, qs, r.flags&flagVerify != 0)
	if err != nil {
		return err
	}
	body := make([]byte, len(held))
	for i, h := range held {
		body[i] = byte(h)
	}
	return in.Reply(nil, body)
}

func stat(ctx context.Context, in *link.Incoming, r request, of *store.Shelf) error {
	info, err := of.Stat(ctx, r.digest)
	if err != nil {
		return err
	}
	return in.Reply(appendPlace(nil, info), nil)
}

func remove(ctx context.Context, in *link.Incoming, r request, of *store.Shelf) error {
	gone, err := of.Delete(ctx, r.digest, r.modified)
	if err != nil {
		return err
	}
	head := []byte{0}
	if gone {
		head[0] = 1
	}
	return in.Reply(head, nil)
}

func list(ctx context.Context, in *link.Incoming, r request, of *store.Shelf) error {
	if err := in.Begin(nil); err != nil {
		return err
	}
	var rec []byte
	for info, err := range of.List(ctx) {
		if err != nil {
			return err
		}
		rec = appendInfo(rec[:0], info)
		if _, err := in.Write(rec); err != nil {
			return err
		}
	}
	return nil
}

func bad(ctx context.Context, in *link.Incoming, r request, of *store.Shelf) error {
	if err := of.Bad(ctx, r.digest); err != nil {
		return err
	}
	return in.Reply(nil, nil)
}
