//go:build linux

package node

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// TestFleetQuorum takes two of three nodes away: what is known is served, what
// must be kept is refused. It heals when one of them is back, and also after
// all three were killed at once.
func TestFleetQuorum(t *testing.T) {
	t.Parallel()
	f, s := startFleet(t)
	p := f.nodes[0]
	ctx := t.Context()
	put := func() {
		t.Helper()
		if _, err := p.c.PutStream(ctx, "kept", api.PutOptions{Records: lode.RecordsLines}, "kept", strings.NewReader("one\ntwo\n")); err != nil {
			t.Fatal(err)
		}
	}
	put()
	for _, q := range f.nodes { // each has the function warm
		if status, body, _ := q.post("/fn/web", "warm"); status != 200 || body != "warm" {
			t.Fatalf("%d %s", status, body)
		}
	}
	status, _, head := p.post("/fn/web/hit?k=before", "", "Prefer", "respond-async")
	if status != http.StatusAccepted {
		t.Fatal(status)
	}
	before := lode.InvocationID(head.Get("Lode-Invocation"))
	f.kill(1)
	f.kill(2)
	f.lostTo(1)
	f.lostTo(2)

	reads := func() {
		t.Helper()
		for i := range 20 {
			if status, body, _ := p.post("/fn/web", "alone"); status != 200 || body != "alone" {
				t.Fatalf("call %d of a warm function without a quorum: %d %s", i, status, body)
			}
		}
		if _, err := p.c.GetName(ctx, "web"); err != nil {
			t.Errorf("a read without a quorum: %v", err)
		}
		if l, err := p.c.ListNames(ctx, api.KindFunction, api.Page{}); err != nil || len(l.Items) == 0 {
			t.Errorf("a list without a quorum: %v", err)
		}
		p.wait("the node to know that it has no quorum", func() bool {
			l, err := p.c.Nodes(ctx)
			return err == nil && !l.Cluster.Quorum
		})
	}
	reads()
	f.refuses(p)
	reads()

	began := time.Now()
	f.restart(1)
	waitFor(t, "writes with two of three", func() bool { return p.c.SetSecret(ctx, "HEALED", []byte("x")) == nil })
	t.Logf("writes with two of three: %v after the start of the second", since(began))
	waitFor(t, "a queue with two of three", func() bool {
		status, _, _ := p.post("/queues/work", "healed", "Content-Type", "text/plain")
		return status == http.StatusAccepted
	})
	p.wait("the message", func() bool { return s.count("/message/healed") > 0 })
	t.Logf("queues with two of three: %v after the start of the second", since(began))
	f.restart(2)
	f.settled(0, 1, 2)

	for round := range rounds(1) {
		id := fmt.Sprintf("all%d", round)
		status, _, head := f.nodes[rand.IntN(3)].post("/fn/web/hit?k="+id, "", "Prefer", "respond-async")
		if status != http.StatusAccepted {
			t.Fatal(status)
		}
		call := lode.InvocationID(head.Get("Lode-Invocation"))
		for i := range f.nodes {
			f.nodes[i].kill()
		}
		began := time.Now()
		order := rand.Perm(3)
		for _, i := range order {
			f.again(i)
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
		}
		for _, i := range order {
			f.nodes[i].ready()
		}
		f.settled(0, 1, 2)
		t.Logf("all three are back, started in the order %v: %v", order, since(began))
		for i, q := range f.nodes {
			for _, id := range []lode.InvocationID{before, call} {
				if c, err := q.c.GetCall(ctx, id, 30*time.Second); err != nil || c.State != lode.StateDone {
					t.Errorf("%s: call %s: %+v %v", fleetNames[i], id, c, err)
				}
			}
			if got := q.content("kept"); got != "one\ntwo\n" {
				t.Errorf("%s: the dataset is %q", fleetNames[i], got)
			}
			if status, body, _ := q.post("/fn/web", "again"); status != 200 || body != "again" {
				t.Errorf("%s: %d %s", fleetNames[i], status, body)
			}
		}
		if s.count("/hit/"+id) == 0 {
			t.Errorf("call %s never ran", id)
		}
		p = f.nodes[0]
		put()
	}
}

// refuses checks that a node without a quorum refuses each write in the agreed
// way, soon.
func (f *fleet) refuses(p *process) {
	f.t.Helper()
	e := guestC(f.t, echo)
	writes := map[string]func() (int, string, http.Header){
		"secret": func() (int, string, http.Header) {
			return p.do(http.MethodPut, "/v1/secrets/LATE", p.auth(), "x")
		},
		"token": func() (int, string, http.Header) {
			return p.do(http.MethodPost, "/v1/tokens", p.auth("Content-Type", "application/json"), `{"role":"read"}`)
		},
		"async": func() (int, string, http.Header) {
			return p.post("/fn/web/hit?k=late", "", "Prefer", "respond-async")
		},
		"message": func() (int, string, http.Header) {
			return p.post("/queues/work", "late", "Content-Type", "text/plain")
		},
		"key": func() (int, string, http.Header) {
			return p.post("/fn/web/hit?k=latekey", "", "Idempotency-Key", "late")
		},
	}
	var all sync.WaitGroup
	for name, do := range writes {
		all.Go(func() {
			began := time.Now()
			status, body, head := do()
			took := since(began)
			f.t.Logf("%s without a quorum: %d after %v: %.160s", name, status, took, body)
			problemOf(f.t, status, body, head, lode.Unavailable)
			if head.Get("Retry-After") == "" {
				f.t.Errorf("%s without a quorum: no Retry-After", name)
			}
			if took > 10*time.Second {
				f.t.Errorf("%s without a quorum is refused after %v", name, took)
			}
		})
	}
	for name, do := range map[string]func() error{
		"deploy": func() error {
			if err := p.upload(e.Wasm); err != nil && kindOf(err) != lode.Unavailable {
				return err
			}
			_, err := p.c.Deploy(f.t.Context(), app("late", "late", function(e)), api.DeployOptions{})
			return err
		},
		"put": func() error {
			_, err := p.c.PutStream(f.t.Context(), "late", api.PutOptions{Records: lode.RecordsLines}, "late", strings.NewReader("x\n"))
			return err
		},
		"job": func() error {
			_, err := p.c.CreateJob(f.t.Context(), api.JobSpec{Function: "web", Dataset: "kept"})
			return err
		},
	} {
		all.Go(func() {
			began := time.Now()
			err := do()
			f.t.Logf("%s without a quorum: %v: %v", name, since(began), err)
			if kindOf(err) != lode.Unavailable {
				f.t.Errorf("%s without a quorum: %v", name, err)
			}
			if took := since(began); took > 20*time.Second {
				f.t.Errorf("%s without a quorum is refused after %v", name, took)
			}
		})
	}
	all.Wait()
}

// auth is the header of a management request.
func (p *process) auth(head ...string) http.Header {
	h := http.Header{"Authorization": {"Bearer " + p.token}}
	for i := 0; i < len(head); i += 2 {
		h.Set(head[i], head[i+1])
	}
	return h
}
