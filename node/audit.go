package node

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"lode"
	"lode/api"
	"lode/bus"
)

// audit keeps who changed what in a table of the bus, newest last. It keeps
// some more than the last auditKeep entries. A key is the time in microseconds,
// 16 digits, and the node that wrote it, so that nodes do not get in each
// other's way.
type audit struct {
	table *bus.Table
	node  lode.NodeID
	last  atomic.Int64  // microseconds of the last key
	n     atomic.Uint64 // entries written
}

const (
	auditKeep  = 10000
	auditSweep = 500 // entries between two looks at what is too old

	auditUnavailable = 250 * time.Millisecond
)

func openAudit(ctx context.Context, b *bus.Bus, node lode.NodeID) (*audit, error) {
	t, err := b.Table(ctx, "audit")
	return &audit{table: t, node: node}, err
}

// key is a new key, behind all that this node made.
func (a *audit) key(at time.Time) string {
	for {
		last := a.last.Load()
		if next := max(at.UnixMicro(), last+1); a.last.CompareAndSwap(last, next) {
			return fmt.Sprintf("%016d-%s", next, a.node)
		}
	}
}

// RecordAudit is called after each write.
func (a *audit) RecordAudit(ctx context.Context, e api.AuditEntry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if e.Kind == lode.Unavailable { // nobody waits longer for the record of what could not be done
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, auditUnavailable)
		defer cancel()
	}
	if _, err := a.table.Put(ctx, a.key(time.Now()), b); err != nil {
		return err
	}
	if a.n.Add(1)%auditSweep == 0 {
		return a.trim(ctx)
	}
	return nil
}

// trim drops the oldest entries.
func (a *audit) trim(ctx context.Context) error {
	es, err := a.table.List(ctx, "")
	for i := 0; err == nil && i < len(es)-auditKeep; i++ {
		err = a.table.Delete(ctx, es[i].Key, 0)
	}
	return err
}

// ListAudit is newest first.
func (a *audit) ListAudit(ctx context.Context, p api.Page) (api.List[api.AuditEntry], error) {
	es, err := a.table.List(ctx, "")
	if err != nil {
		return api.List[api.AuditEntry]{}, err
	}
	keys := pageDown(es, p, func(e bus.Entry) string { return e.Key })
	out := api.List[api.AuditEntry]{Items: []api.AuditEntry{}, Next: keys.Next}
	for _, e := range keys.Items {
		var v api.AuditEntry
		if err := json.Unmarshal(e.Value, &v); err != nil {
			return out, err
		}
		out.Items = append(out.Items, v)
	}
	return out, nil
}

var _ api.Audit = (*audit)(nil)
