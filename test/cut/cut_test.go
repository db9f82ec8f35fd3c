//go:build linux

package cut

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// TestUnplugged takes the cable of one node out, without a word to anybody, and
// puts it back: of a node that is not the keeper, then of the keeper.
func TestUnplugged(t *testing.T) {
	c := three(t)
	h := c.record()
	time.Sleep(2 * time.Second)
	rounds, dark := 1, 6*time.Second
	if long() {
		rounds, dark = 4, 20*time.Second
	}
	version := 1
	for range rounds {
		for _, who := range []string{"a member", "the keeper"} {
			keeper := c.keeper("a")
			victim := keeper
			if who == "a member" {
				victim = c.others(keeper)[0].name
			}
			t.Logf("--- %s, %s, is cut; the keeper is %s", who, victim, keeper)
			version++
			c.cutOne(victim, version, dark)
		}
	}
	h.end()
}

// cutOne cuts one node for a while. The others must go on, and deploy that
// version; the one alone must say what it cannot do.
func (c *cluster) cutOne(victim string, version int, dark time.Duration) {
	t := c.t
	t.Helper()
	rest := c.others(victim)
	c.net.unplug(victim)
	began := time.Now()
	since := func() time.Duration { return time.Since(began).Round(time.Millisecond) }
	for _, p := range rest {
		waitFor(t, "calls at "+p.name, func() bool { return p.get("/fn/web/version").status == http.StatusOK })
	}
	t.Logf("calls at the others: %s after the cut", since())
	waitFor(t, "a secret", func() bool { return rest[0].api.SetSecret(t.Context(), "CUT", []byte("x")) == nil })
	t.Logf("a secret: %s", since())
	waitFor(t, "a deploy", func() bool { return rest[0].redeploy(version) == nil })
	t.Logf("a deploy: %s", since())
	waitFor(t, "asynchronous work", func() bool {
		a := rest[1].post("/fn/web/hit?k=cut"+fmt.Sprint(version), "", "Prefer", "respond-async")
		return a.status == http.StatusAccepted
	})
	waitFor(t, "asynchronous work to be done", func() bool { return c.sink.count("/hit/cut"+fmt.Sprint(version)) > 0 })
	t.Logf("asynchronous work: %s", since())
	c.alone(victim, version-1)
	if d := dark - time.Since(began); d > 0 {
		time.Sleep(d)
	}
	c.net.plug(victim)
	healed := time.Now()
	p := c.nodes[victim]
	waitFor(t, "a write at "+victim, func() bool { return p.api.SetSecret(t.Context(), "BACK", []byte("x")) == nil })
	t.Logf("after %s of darkness: a write at %s %s after the cable is back", since(), victim, time.Since(healed).Round(time.Millisecond))
	c.healed()
	t.Logf("all is well %s after the cable is back", time.Since(healed).Round(time.Millisecond))
	waitFor(t, "the version at "+victim, func() bool { return p.get("/fn/web/version").body == fmt.Sprint(version) })
}

// healed waits until every node sees every other and all members answer.
func (c *cluster) healed() {
	c.t.Helper()
	var last string
	defer func() {
		if c.t.Failed() {
			c.t.Log("the nodes are not as they should be: " + last)
		}
	}()
	waitFor(c.t, "the cluster to be whole", func() bool {
		for name, p := range c.nodes {
			l, err := p.api.Nodes(c.t.Context())
			if err != nil {
				last = name + ": " + err.Error()
				return false
			}
			last = fmt.Sprintf("%s: %+v", name, l)
			if l.Cluster.Keeper == "" || !l.Cluster.Quorum || l.Cluster.Answering != len(l.Cluster.Members) {
				return false
			}
			for _, n := range l.Items {
				if n.State != api.NodeReady {
					return false
				}
			}
		}
		return true
	})
}

// alone checks what a node does that hears nobody: it serves what it knows, and
// refuses to write.
func (c *cluster) alone(name string, version int) {
	t := c.t
	t.Helper()
	p := c.nodes[name]
	if a := p.get("/fn/web/version"); a.status != http.StatusOK || a.body != fmt.Sprint(version) {
		t.Errorf("a known function at %s, which is alone: %s", name, a)
	}
	if _, err := p.api.ListNames(t.Context(), "", api.Page{}); err != nil {
		t.Errorf("the list of functions at %s, which is alone: %v", name, err)
	}
	if _, err := p.api.GetName(t.Context(), "web"); err != nil {
		t.Errorf("a function's description at %s, which is alone: %v", name, err)
	}
	if l, err := p.api.Nodes(t.Context()); err != nil || l.Cluster.Quorum {
		t.Errorf("%s, which is alone, tells of %+v %v", name, l.Cluster, err)
	}
	c.refuses(p, lode.Unavailable)
}

// refuses checks that a node refuses each kind of write in time, with a hint.
func (c *cluster) refuses(p *process, kinds ...lode.Kind) {
	t := c.t
	t.Helper()
	for what, write := range p.writes() {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := write(ctx)
		cancel()
		took := time.Since(began)
		t.Logf("%s at %s: refused after %s: %v", what, p.name, took.Round(time.Millisecond), err)
		e := lode.AsError(err)
		if err == nil || e == nil || !has(kinds, e.Kind) {
			t.Errorf("%s at %s: %v, want one of %v", what, p.name, err, kinds)
			continue
		}
		if e.Kind == lode.Unavailable && e.Hint == "" && e.RetryAfter == 0 {
			t.Errorf("%s at %s says nothing of what to do: %+v", what, p.name, e)
		}
		if took > 20*time.Second {
			t.Errorf("%s at %s was refused after %s", what, p.name, took)
		}
	}
}

func has(kinds []lode.Kind, k lode.Kind) bool {
	for _, one := range kinds {
		if one == k {
			return true
		}
	}
	return false
}
