package member

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"lode"
	"lode/bus"
)

// swapTries bounds how often a lost compare-and-swap is repeated.
const swapTries = 16

// Announce says that this node is up: it writes r as the node's record, with
// the present certificate and a new incarnation, and makes it Ready, unless it
// is draining or drained. It tries until ctx ends while the bus is out. Gone:
// the node was removed. Denied: its name belongs to another node. Only the
// very first node of a cluster needs no record from before.
func (m *Members) Announce(ctx context.Context, r Record) error {
	id := m.cfg.Identity
	r.Name, r.CertSerial, r.Started = id.Node(), id.Serial(), m.cfg.Clock.Now().UTC()
	if r.Incarnation == "" {
		r.Incarnation = m.incarnation
	}
	if err := r.check(); err != nil {
		return err
	}
	for n := 0; ; n++ {
		err := m.announce(ctx, r)
		if k := lode.KindOf(err); k != lode.Unavailable && k != lode.Deadline && k != lode.Precondition && k != lode.Conflict {
			return err
		}
		if n == 0 {
			m.cfg.Logger.Info("waiting to tell the cluster that this node is up", "error", err)
		}
		if m.cfg.Clock.Sleep(ctx, backoff(n, 100*time.Millisecond, 5*time.Second)) != nil {
			return err
		}
	}
}

func (m *Members) announce(ctx context.Context, r Record) error {
	t, err := m.table(ctx)
	if err != nil {
		return err
	}
	if err := m.gone(ctx, t, r.mark()); err != nil {
		return err
	}
	e, ok, err := t.Get(ctx, string(r.Name))
	if err != nil {
		return err
	}
	if !ok {
		return m.announceFirst(ctx, t, r)
	}
	old, err := parseRecord(e.Value)
	if err != nil {
		return err
	}
	if old.mark() != r.mark() {
		return unknown("the name %s belongs to another node now", r.Name).
			WithHint("join again with a fresh folder and another name: lode up --name N --join HOST --token ...")
	}
	r.Joined, r.State = old.Joined, old.State
	if r.State != Draining && r.State != Drained {
		r.State = Ready
	}
	return update(ctx, t, r, e.Rev)
}

// announceFirst makes the record of the first node of a cluster. There is no
// record to follow only where there is no other node.
func (m *Members) announceFirst(ctx context.Context, t *bus.Table, r Record) error {
	all, err := t.List(ctx, "")
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(e bus.Entry) bool { return !strings.HasPrefix(e.Key, prefixRemoved) }) {
		return unknown("node %s is not known to the cluster", r.Name).
			WithHint("join with a fresh folder: lode token create --join on a node of the cluster, then lode up --join HOST --token ...")
	}
	r.State, r.Joined = Ready, r.Started
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = t.Create(ctx, string(r.Name), b)
	return err
}

// gone is the error of a node that was removed, told by its mark.
func (m *Members) gone(ctx context.Context, t *bus.Table, mark string) error {
	e, ok, err := t.Get(ctx, prefixRemoved+mark)
	if err != nil || !ok {
		return err
	}
	var r removal
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return lode.Errorf(lode.Damaged, "the record of a removed node: %w", err)
	}
	return r.err()
}

func update(ctx context.Context, t *bus.Table, r Record, rev uint64) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = t.Update(ctx, string(r.Name), b, rev)
	return err
}

// change reads a node's record, lets f change it, and writes it, until nobody
// came between. NotFound: there is no such node.
func (m *Members) change(ctx context.Context, node lode.NodeID, f func(*Record) error) error {
	t, err := m.table(ctx)
	if err != nil {
		return err
	}
	for range swapTries {
		r, rev, ok, err := m.fetch(ctx, node)
		if err != nil {
			return err
		}
		if !ok {
			return m.noSuch(node)
		}
		before := r.State
		if err := f(&r); err != nil {
			return err
		}
		if err = update(ctx, t, r, rev); lode.KindOf(err) != lode.Precondition {
			if err == nil && before != r.State {
				m.cfg.Logger.Info("a node changed its state", "node", node, "from", before, "to", r.State)
			}
			return err
		}
	}
	return lode.Errorf(lode.Conflict, "the record of node %s is being changed by others all the time", node).WithHint("try again")
}

func (m *Members) noSuch(node lode.NodeID) error {
	var names []string
	for _, r := range m.List() {
		names = append(names, string(r.Name))
	}
	err := lode.Errorf(lode.NotFound, "there is no node %s", node).WithHint("nodes: %s", strings.Join(names, ", "))
	if near := lode.Suggest(string(node), names); near != "" {
		err.Hint = "did you mean " + near + "? " + err.Hint
	}
	return err
}

// SetState makes a node Draining, Drained or Ready, from any node, whatever of
// them it is now. Precondition: it is still joining, or would be drained
// without having drained. NotFound: there is no such node.
func (m *Members) SetState(ctx context.Context, node lode.NodeID, to State) error {
	if to != Ready && to != Draining && to != Drained {
		return lode.Errorf(lode.Invalid, "a node cannot be made %q", to)
	}
	return m.change(ctx, node, func(r *Record) error { return r.become(to) })
}

// become changes the state of a node that has come up.
func (r *Record) become(to State) error {
	switch {
	case r.State == Joining:
		return lode.Errorf(lode.Precondition, "node %s is joining and has not come up yet", r.Name).WithHint("wait for it, or remove it: lode nodes rm %s", r.Name)
	case to == Drained && r.State == Ready:
		return lode.Errorf(lode.Precondition, "node %s is not draining any more", r.Name).WithHint("somebody made it ready again; lode drain %s begins anew", r.Name)
	case to == Draining && r.State == Drained:
		return nil // it is already what the caller wants it to be
	}
	r.State = to
	return nil
}

// Renewed writes the serial of this node's present certificate to its record.
// The record is right without it: a node is told by its mark.
func (m *Members) Renewed(ctx context.Context) error {
	serial := m.cfg.Identity.Serial()
	return m.change(ctx, m.cfg.Identity.Node(), func(r *Record) error {
		if r.mark() != markIn(serial) {
			return unknown("the name %s belongs to another node now", r.Name)
		}
		r.CertSerial = serial
		return nil
	})
}

// Remove takes a node out of the cluster: its certificate is refused from then
// on, and when it asks it is told. Precondition: the node is alive and has not
// drained, and force is false; or it is the only node. To remove a node that
// was removed is no error.
func (m *Members) Remove(ctx context.Context, node lode.NodeID, force bool) error {
	t, err := m.table(ctx)
	if err != nil {
		return err
	}
	r, rev, ok, err := m.fetch(ctx, node)
	if err != nil {
		return err
	}
	was, others, err := m.survey(ctx, t, node)
	if err != nil {
		return err
	}
	switch {
	case !ok && was:
		return nil
	case !ok:
		return m.noSuch(node)
	case others == 0:
		return lode.Errorf(lode.Precondition, "node %s is the only node of the cluster", node).WithHint("to end a cluster stop its last node and delete its data folder")
	case !force && r.State != Drained && m.alive(node):
		return lode.Errorf(lode.Precondition, "node %s is %s and answers: what runs on it would be lost", node, r.State).
			WithHint("lode drain %s first; or lode nodes rm %s --force", node, node)
	}
	b, err := json.Marshal(removal{Name: node, Removed: m.cfg.Clock.Now().UTC()})
	if err != nil {
		return err
	}
	if _, err := t.Put(ctx, prefixRemoved+r.mark(), b); err != nil {
		return err
	}
	err = t.Delete(ctx, string(node), rev)
	if lode.KindOf(err) == lode.Precondition { // it changed meanwhile: look again
		if now, _, ok, e := m.fetch(ctx, node); e == nil && (!ok || now.mark() != r.mark()) {
			return nil
		}
		err = m.deleteMark(ctx, t, node, r.mark())
	}
	m.cfg.Logger.Info("a node was removed from the cluster", "node", node, "force", force, "error", err)
	return err
}

func (m *Members) alive(node lode.NodeID) bool {
	return node == m.cfg.Identity.Node() || m.cfg.Alive != nil && m.cfg.Alive(node)
}

// deleteMark deletes a node's record as long as it is of that mark.
func (m *Members) deleteMark(ctx context.Context, t *bus.Table, node lode.NodeID, mark string) error {
	for range swapTries {
		r, rev, ok, err := m.fetch(ctx, node)
		if err != nil || !ok || r.mark() != mark {
			return err
		}
		if err := t.Delete(ctx, string(node), rev); lode.KindOf(err) != lode.Precondition {
			return err
		}
	}
	return lode.Errorf(lode.Conflict, "the record of node %s is being changed by others all the time", node).WithHint("try again")
}

// survey says whether a node of the name was removed before and how many other
// nodes there are, and forgets removals that no certificate needs any more.
func (m *Members) survey(ctx context.Context, t *bus.Table, node lode.NodeID) (was bool, others int, err error) {
	all, err := t.List(ctx, "")
	if err != nil {
		return false, 0, err
	}
	for _, e := range all {
		if !strings.HasPrefix(e.Key, prefixRemoved) {
			if e.Key != string(node) {
				others++
			}
			continue
		}
		var r removal
		if json.Unmarshal(e.Value, &r) != nil {
			continue
		}
		was = was || r.Name == node
		if m.cfg.Clock.Now().Sub(r.Removed) > removedFor {
			if err := t.Delete(ctx, e.Key, e.Rev); err != nil && lode.KindOf(err) != lode.Precondition {
				return false, 0, err
			}
		}
	}
	return was, others, nil
}
