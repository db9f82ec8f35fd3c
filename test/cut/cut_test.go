//go:build linux

package cut

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// TestUnplugged takes the cable of one node out, without a word to anybody, and
// puts it back: of a node that is not the keeper, then of the keeper.
func TestUnplugged(t *testing.T) {
	t.Parallel() // they wait more than they work
	c := three(t)
	h := c.record()
	time.Sleep(2 * time.Second)
	rounds, dark := 1, 6*time.Second
	if long() {
		rounds, dark = 4, 20*time.Second
	}
	for range rounds {
		for _, who := range []string{"a member", "the keeper"} {
			keeper := c.keeper("a")
			victim := keeper
			if who == "a member" {
				victim = c.others(keeper)[0].name
			}
			t.Logf("--- %s, %s, is cut; the keeper is %s", who, victim, keeper)
			c.cutOne(victim, dark)
		}
	}
	h.end()
}

// cutOne cuts one node for a while. The others must go on, and deploy; the one
// alone must say what it cannot do.
func (c *cluster) cutOne(victim string, dark time.Duration) {
	t := c.t
	t.Helper()
	rest := c.others(victim)
	known := c.nodes[victim].get("/fn/web/version").body
	version := int(c.version.Add(1))
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
	c.alone(victim, known)
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
	last := ""
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if last = c.ill(); last == "" {
			return
		}
	}
	c.t.Fatalf("the cluster does not get whole: %s", last)
}

// ill says what is wrong with the cluster, as some node sees it; "": nothing.
func (c *cluster) ill() string {
	for name, p := range c.nodes {
		l, err := p.api.Nodes(c.t.Context())
		if err != nil {
			return name + ": " + err.Error()
		}
		s := l.Cluster
		if s.Keeper == "" || !s.Quorum || s.External == "" && s.Answering != len(s.Members) {
			return fmt.Sprintf("%s: %+v", name, s)
		}
		for _, n := range l.Items {
			if n.State != api.NodeReady {
				return fmt.Sprintf("%s: %s is %s: %+v", name, n.Name, n.State, n.Link)
			}
		}
	}
	return ""
}

// alone checks what a node does that hears nobody: it serves what it knows, and
// refuses to write.
func (c *cluster) alone(name, version string) {
	t := c.t
	t.Helper()
	p := c.nodes[name]
	if a := p.get("/fn/web/version"); a.status != http.StatusOK || a.body != version {
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
	var all sync.WaitGroup
	for what, write := range p.writes() {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			began := time.Now()
			err := write(ctx)
			took := time.Since(began).Round(time.Millisecond)
			e := lode.AsError(err)
			switch {
			case e == nil || !has(kinds, e.Kind):
				t.Errorf("%s at %s: %v after %s, want one of %v", what, p.name, err, took, kinds)
			case e.Hint == "" && e.RetryAfter == 0:
				t.Errorf("%s at %s says nothing of what to do: %+v", what, p.name, e)
			default:
				t.Logf("%s at %s: %s after %s: %v | %s", what, p.name, e.Kind, took, err, e.Hint)
			}
		})
	}
	all.Wait()
}

func has(kinds []lode.Kind, k lode.Kind) bool {
	for _, one := range kinds {
		if one == k {
			return true
		}
	}
	return false
}
