package node

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"lode/api"
	"lode/bus"
)

// audit keeps who changed what in a table of the bus, newest last. It keeps
// the last auditKeep entries.
type audit struct {
	table *bus.Table
	n     atomic.Uint64
}

const auditKeep = 10000

func openAudit(ctx context.Context, b *bus.Bus) (*audit, error) {
	t, err := b.Table(ctx, "audit")
	if err != nil {
		return nil, err
	}
	a := &audit{table: t}
	es, err := t.List(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, e := range es { // the table orders by key, and keys have a fixed width
		var n uint64
		fmt.Sscanf(e.Key, "%d", &n)
		a.n.Store(max(a.n.Load(), n))
	}
	return a, nil
}

func auditKey(n uint64) string { return fmt.Sprintf("%016d", n) }

// RecordAudit is called after each write.
func (a *audit) RecordAudit(ctx context.Context, e api.AuditEntry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	n := a.n.Add(1)
	if _, err := a.table.Put(ctx, auditKey(n), b); err != nil {
		return err
	}
	if n > auditKeep {
		if old, ok, err := a.table.Get(ctx, auditKey(n-auditKeep)); err == nil && ok {
			return a.table.Delete(ctx, old.Key, old.Rev)
		}
	}
	return nil
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
