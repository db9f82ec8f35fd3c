package job

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"lode"
	"lode/link"
)

// MethodWork is the method of a link that ServeWork answers and CallWork
// calls. To the byte:
//
//	call     no head; body: Group.Encode
//	notes    JSON of Progress, some a second while the group is worked on
//	answer   no head; body: Done.Encode, for a group that failed too; an error
//	         of the call itself says that the group was not begun
const MethodWork = "job.work"

// maxGroupBytes bounds a call's body: 64 shards and a function need a small
// part of it.
const maxGroupBytes = 64 << 20

// ServeWork answers MethodWork on a node.
func ServeWork(e *Executor) link.Handler {
	return func(ctx context.Context, in *link.Incoming) error {
		b, err := io.ReadAll(io.LimitReader(in.Whole(), maxGroupBytes+1))
		if err != nil {
			return err
		}
		if len(b) > maxGroupBytes {
			return lode.Errorf(lode.TooLarge, "a group of shards of more than %d bytes", maxGroupBytes)
		}
		g, err := DecodeGroup(b)
		if err != nil {
			return err
		}
		done, err := e.Work(ctx, g, func(p Progress) {
			if note, err := json.Marshal(p); err == nil {
				in.Note(note) // a caller that has gone ends ctx
			}
		})
		if done == nil {
			return err
		}
		head, state, err := done.Encode()
		if err != nil {
			return err
		}
		if err := in.Begin(nil); err != nil {
			return err
		}
		if _, err := in.Write(head); err != nil {
			return err
		}
		_, err = in.Write(state)
		return err
	}
}

// CallWork has another node work on a group; see Cluster.Work for what its
// results mean.
func CallWork(ctx context.Context, l *link.Link, node lode.NodeID, g *Group) (*Done, error) {
	body, err := g.Encode()
	if err != nil {
		return nil, err
	}
	req := &link.Request{Method: MethodWork, Body: body, Note: func(b []byte) []byte {
		var p Progress
		if json.Unmarshal(b, &p) == nil && g.Heard != nil {
			g.Heard(p)
		}
		return nil
	}}
	answer := &link.Bytes{Max: partialMax}
	if err := l.Call(ctx, node, req, answer); err != nil {
		if lode.KindOf(err) == lode.TooLarge { // it will be elsewhere
			return &Done{Error: lode.AsError(err)}, err
		}
		return nil, err
	}
	done, err := DecodeDone(answer.Body)
	if err != nil {
		return nil, err
	}
	if done.Error != nil {
		return done, done.Error
	}
	return done, nil
}

// notSent reports whether nothing of a group went to a node; refused, whether
// the node did not begin with it.
func notSent(err error) bool { return errors.Is(err, link.ErrNotSent) }
func refused(err error) bool { return errors.Is(err, link.ErrRefused) || notSent(err) }
