package member

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
)

// TestRestart starts a node again from its folder: same name, new incarnation.
func TestRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	before, _ := a.members.Get("b")
	b.ln.Close()
	b.members.Close()
	id, ok, err := Load(b.dir, c.clock)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	c.clock.add(time.Minute)
	b = c.start(b.dir, id)
	eventually(t, "a sees the new incarnation", func() bool { r, _ := a.members.Get("b"); return r.Peers == b.addr })
	after, _ := a.members.Get("b")
	if after.Incarnation == before.Incarnation || !after.Joined.Equal(before.Joined) || after.Started.Sub(before.Started) != time.Minute {
		t.Fatalf("before %+v, after %+v", before, after)
	}
	if got, err := a.talk(Link, "b"); err != nil || got != "b to a\n" {
		t.Fatal(got, err)
	}
}

// TestBusOut starts nodes while the bus is not there: they find each other by
// what they knew, and the truth replaces it when the bus is back.
func TestBusOut(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	for _, p := range []*peer{a, b} {
		p.members.Close()
	}
	// c joins, and b is removed, while the two are down.
	a2, b2 := c.open(a.dir, a.id), c.open(b.dir, b.id)
	fix := func(p *peer, name lode.NodeID, addr string) {
		p.members.mu.Lock()
		defer p.members.mu.Unlock()
		nodes := maps.Clone(p.members.nodes)
		r := nodes[name]
		r.Peers = addr
		nodes[name] = r
		p.members.nodes = nodes
	}
	if got := len(b2.members.List()); got != 2 {
		t.Fatalf("%d nodes out of peers.json", got)
	}
	fix(a2, "b", b2.addr) // the port of a test's node changes
	fix(b2, "a", a2.addr)
	select {
	case <-b2.members.Synced():
		t.Fatal("synced without a bus")
	default:
	}
	if got, err := a2.talk(Bus, "b"); err != nil || got != "b to a\n" {
		t.Fatal(got, err)
	}
	if got, err := b2.talk(Bus, "a"); err != nil || got != "a to b\n" {
		t.Fatal(got, err)
	}
	if err := b2.members.SetState(t.Context(), "a", Draining); lode.KindOf(err) != lode.Unavailable {
		t.Fatal(err)
	}
	conn, err := b2.members.Dialer(Link)(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(io.LimitReader(conn, 7)); err != nil || string(b) != "a to b\n" {
		t.Fatal(string(b), err)
	}
	other := c.openFollowing(t, "x")
	if err := other.Remove(t.Context(), "b", true); err != nil {
		t.Fatal(err)
	}
	a2.members.Follow(c.bus)
	<-a2.members.Synced()
	if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Log(err) // however it ends, it ends
	}
	eventually(t, "counted", func() bool { return a2.ln.Refused()[WhyRemoved] > 0 })
	if _, ok := a2.members.Get("b"); ok {
		t.Fatal("b is still there")
	}
}

// openFollowing is a mirror without a node of its own.
func (c *cluster) openFollowing(t *testing.T, name lode.NodeID) *Members {
	t.Helper()
	id, err := Found(t.Context(), t.TempDir(), name, c.authority())
	if err != nil {
		t.Fatal(err)
	}
	m, err := OpenMembers(MembersConfig{Identity: id, Clock: c.clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	m.Follow(c.bus)
	<-m.Synced()
	return m
}

// TestUnknownIsLookedFor lets a node in that the mirror does not know yet, and
// refuses one that nobody knows.
func TestUnknownIsLookedFor(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	a.members.mu.Lock()
	nodes := maps.Clone(a.members.nodes)
	delete(nodes, "b")
	a.members.nodes = nodes
	a.members.mu.Unlock()
	if a.members.Allowed("b", b.id.Serial()) {
		t.Fatal("allowed from memory")
	}
	if got, err := b.talk(Link, "a"); err != nil || got != "a to b\n" {
		t.Fatal(got, err)
	}
	// A certificate without a record: somebody signed it by hand.
	id, err := Found(t.Context(), t.TempDir(), "ghost", c.authority())
	if err != nil {
		t.Fatal(err)
	}
	ghost := c.open(id.dir, id)
	ghost.members.nodes["a"], _ = a.members.Get("a")
	_, err = ghost.talk(Link, "a")
	wantError(t, err, lode.Denied, "node ghost is not known to the cluster", "lode token create --join")
	if a.ln.Refused()[WhyUnknown] != 1 || !a.logs.has("why=unknown") {
		t.Fatal("not counted, or not logged")
	}
	ghost.members.Follow(c.bus)
	wantError(t, ghost.members.Announce(t.Context(), ghost.record()), lode.Denied, "node ghost is not known to the cluster")
	// Where the bus cannot be asked it passes: it may be a member of the bus.
	a.members.mu.Lock()
	a.members.tables = noBus{}
	a.members.mu.Unlock()
	if got, err := ghost.talk(Link, "a"); err != nil || got != "a to ghost\n" {
		t.Fatal(got, err)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	ctx := t.Context()
	wantError(t, a.members.Remove(ctx, "a", true), lode.Precondition, "the only node")
	b := a.join("b")
	a.alive = func(n lode.NodeID) bool { return n == "b" }
	wantError(t, a.members.Remove(ctx, "bb", false), lode.NotFound, "there is no node bb", "did you mean b?")
	wantError(t, a.members.Remove(ctx, "b", false), lode.Precondition, "node b is ready and answers", "lode drain b")
	wantError(t, b.members.Remove(ctx, "b", false), lode.Precondition, "node b is ready and answers")

	conn, err := b.members.Dialer(Link)(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := a.members.Remove(ctx, "b", true); err != nil {
		t.Fatal(err)
	}
	if err := a.members.Remove(ctx, "b", true); err != nil {
		t.Fatalf("a second time: %v", err)
	}
	io.Copy(io.Discard, conn) // ends, because a ends it
	eventually(t, "b knows itself", func() bool { return b.members.Expelled() != nil })
	wantError(t, b.members.Expelled(), lode.Gone, "node b was removed from the cluster on 2026-03-01", "fresh folder")
	_, err = b.members.DialAddr(ctx, Link, "a", a.addr)
	wantError(t, err, lode.Gone, "node b was removed from the cluster", "lode token create --join")
	// One that has no bus hears it from another node.
	deaf := c.open(b.dir, b.id)
	deaf.members.removed = map[string]removal{}
	if _, err := deaf.members.DialAddr(ctx, Link, "a", a.addr); lode.KindOf(err) != lode.Gone {
		t.Fatal(err)
	}
	wantError(t, deaf.members.Expelled(), lode.Gone, "node b was removed from the cluster")
	eventually(t, "told", func() bool { return len(deaf.changed) == 1 })
	if n := a.ln.Refused()[WhyRemoved]; n < 2 || !a.logs.has("why=removed") {
		t.Fatalf("counted %d, or not logged", n)
	}
	// It comes back.
	wantError(t, b.members.Announce(ctx, b.record()), lode.Gone, "was removed")
	o := a.options("b", a.token(1, time.Hour))
	o.Dir = b.dir
	_, err = Join(ctx, o)
	wantError(t, err, lode.Conflict, "is node b of that cluster already")
	for _, f := range []string{fileCert, fileCA} {
		os.Remove(filepath.Join(b.dir, f))
	}
	_, err = Join(ctx, o)
	wantError(t, err, lode.Gone, "was removed", "fresh folder")
	// A new node takes the name; the old one stays out.
	n := a.join("b")
	if got, err := n.talk(Bus, "a"); err != nil || got != "a to b\n" {
		t.Fatal(got, err)
	}
	_, err = b.members.DialAddr(ctx, Link, "a", a.addr)
	wantError(t, err, lode.Gone, "was removed")
	// Removals are forgotten when no certificate can be left.
	eventually(t, "the removal is mirrored", func() bool { a.members.mu.RLock(); defer a.members.mu.RUnlock(); return len(a.members.removed) == 1 })
	c.clock.add(removedFor + time.Hour)
	a.alive = nil
	if err := a.members.Remove(ctx, "b", false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "forgotten", func() bool {
		a.members.mu.RLock()
		defer a.members.mu.RUnlock()
		_, old := a.members.removed[markIn(b.id.Serial())]
		return !old && len(a.members.removed) == 1
	})
}

func TestStates(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	ctx := t.Context()
	o := a.options("b", a.token(1, time.Hour))
	j, err := Join(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, a.members.SetState(ctx, "b", Draining), lode.Precondition, "has not come up yet")
	b := c.start(o.Dir, j.Identity)
	state := func(want State) {
		t.Helper()
		eventually(t, "b is "+string(want), func() bool { r, _ := b.members.Get("b"); return r.State == want })
	}
	state(Ready)
	wantError(t, a.members.SetState(ctx, "b", Drained), lode.Precondition, "not draining any more")
	wantError(t, a.members.SetState(ctx, "nobody", Draining), lode.NotFound, "there is no node nobody")
	if err := a.members.SetState(ctx, "b", Joining); lode.KindOf(err) != lode.Invalid {
		t.Fatal(err)
	}
	for _, s := range []State{Draining, Drained} {
		if err := a.members.SetState(ctx, "b", s); err != nil {
			t.Fatal(err)
		}
		state(s)
		if err := b.members.Announce(ctx, b.record()); err != nil {
			t.Fatal(err)
		}
		state(s)
	}
	if err := a.members.SetState(ctx, "b", Draining); err != nil {
		t.Fatal(err)
	}
	state(Drained)
	if err := b.members.SetState(ctx, "b", Ready); err != nil {
		t.Fatal(err)
	}
	state(Ready)
}

// TestStatesAtOnce changes one record from two nodes: no change is lost.
func TestStatesAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	var wg sync.WaitGroup
	for range 4 {
		for _, p := range []*peer{a, b} {
			wg.Go(func() {
				if err := p.members.change(t.Context(), "a", func(r *Record) error { r.CPU++; return nil }); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	r, _, _, err := a.members.fetch(t.Context(), "a")
	if err != nil || r.CPU != 10 {
		t.Fatal(r.CPU, err)
	}
}

// TestAnnounceWaits announces while the bus is out, and succeeds when it is
// back.
func TestAnnounceWaits(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	o := a.options("b", a.token(1, time.Hour))
	j, err := Join(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	b := c.open(o.Dir, j.Identity)
	done := make(chan error, 1)
	go func() { done <- b.members.Announce(t.Context(), b.record()) }()
	eventually(t, "it waits", func() bool { return b.logs.has("waiting to tell the cluster") })
	b.members.Follow(c.bus)
	eventually(t, "announced", func() bool {
		c.clock.add(5 * time.Second)
		select {
		case err := <-done:
			return err == nil
		default:
			return false
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := c.open(o.Dir, j.Identity)
	if err := d.members.Announce(ctx, d.record()); err == nil {
		t.Fatal("announced without a bus")
	}
}

// TestPeersFile starts without what it knew where that cannot be read.
func TestPeersFile(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	a.join("b")
	eventually(t, "written", func() bool { p, err := readPeers(a.dir); return err == nil && len(p.Nodes) == 2 })
	a.members.Close() // it would write again
	for _, bad := range []string{"", "{", `{"format":2}`, "null"} {
		if err := os.WriteFile(filepath.Join(a.dir, filePeers), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := OpenMembers(MembersConfig{Identity: a.id, Logger: a.logger()})
		if err != nil || len(m.List()) != 0 {
			t.Fatalf("%q: %v", bad, err)
		}
		m.Close()
	}
	if !a.logs.has("cannot be read") {
		t.Fatal("not logged")
	}
}

// TestDamagedRecord passes over a record that cannot be read, and keeps the
// others.
func TestDamagedRecord(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	tab, err := c.bus.Table(t.Context(), tableNodes)
	if err != nil {
		t.Fatal(err)
	}
	for key, v := range map[string]string{"x": "{", "y": `{"name":"z"}`, "w": `{"name":"w","peers":"nowhere"}`} {
		if _, err := tab.Put(t.Context(), key, []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	a.join("b")
	eventually(t, "logged", func() bool { return a.logs.has("key=x") && a.logs.has("key=y") && a.logs.has("key=w") })
	if got := len(a.members.List()); got != 2 {
		t.Fatalf("%d nodes", got)
	}
}

func TestRecordJSON(t *testing.T) {
	r := Record{Name: "a", Gateway: "h:1", Peers: "h:2", Bus: "h:3", Labels: map[string]string{"k": "v"}, GPU: []string{"H100"}, State: Ready, CertSerial: strings.Repeat("0", 32)}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseRecord(b)
	if err != nil || got.mark() != strings.Repeat("0", 16) || got.Labels["k"] != "v" {
		t.Fatal(got, err)
	}
	copied := got.clone()
	copied.Labels["k"], copied.GPU[0] = "w", "none"
	if got.Labels["k"] != "v" || got.GPU[0] != "H100" {
		t.Fatal("a clone shares")
	}
	labels := map[string]string{}
	for i := range maxLabels + 1 {
		labels[strings.Repeat("x", i)] = ""
	}
	for name, f := range map[string]func(*Record){
		"name": func(r *Record) { r.Name = "A" }, "gateway": func(r *Record) { r.Gateway = "h" }, "port": func(r *Record) { r.Bus = "h:0" },
		"labels": func(r *Record) { r.Labels = labels }, "zone": func(r *Record) { r.Zone = strings.Repeat("z", maxText+1) },
		"gpu": func(r *Record) { r.GPU = make([]string, maxGPU+1) }, "cpu": func(r *Record) { r.CPU = -1 }, "host": func(r *Record) { r.Peers = ":1" },
	} {
		bad := r
		f(&bad)
		if err := bad.check(); lode.KindOf(err) != lode.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
