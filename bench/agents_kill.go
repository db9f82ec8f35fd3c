package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lode"
	"lode/api"
)

// agentsKill: the owner of agents is killed while they are called from another
// node. Nothing that was acknowledged may be missing, and each message that a
// turn has sent must have taken effect once.
func (r *runner) agentsKill(ctx context.Context) error {
	ds, stop, err := r.three(ctx, "kill", "")
	if err != nil {
		return err
	}
	defer func() { stop() }()
	none := func(int) error { return nil }
	return r.kills(ctx, &ds, "kill -9 of an owner, three nodes", "<= 4 s", "1.5", none, none)
}

// agentsNATS is agentsKill on a NATS cluster of three servers with the timers
// that they come with. With a node one of the servers is killed, as if they
// shared a machine.
func (r *runner) agentsNATS(ctx context.Context) error {
	bin := filepath.Join(r.dir, "nats-server")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/nats-io/nats-server/v2").CombinedOutput(); err != nil {
		return lode.Errorf(lode.Unavailable, "build the NATS server: %s", out).WithHint("this part needs Go and the project folder: run it there")
	}
	var servers [3]*exec.Cmd
	var ports [3]int
	var routes, urls []string
	for i := range ports {
		var err error
		if ports[i], err = freePorts(); err != nil {
			return err
		}
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", ports[i]))
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[i]+1))
	}
	start := func(i int) error {
		servers[i] = exec.CommandContext(ctx, bin, "-a", "127.0.0.1", "-p", strconv.Itoa(ports[i]), "-n", trioNames[i], "-js", "-sd", filepath.Join(r.dir, "nats", "nats-"+trioNames[i]),
			"-cluster_name", "own", "-cluster", fmt.Sprintf("nats://127.0.0.1:%d", ports[i]+1), "-routes", strings.Join(routes, ","))
		return servers[i].Start()
	}
	kill := func(i int) error {
		servers[i].Process.Kill()
		servers[i].Wait()
		return nil
	}
	defer func() {
		for i, s := range servers {
			if s != nil && s.Process != nil && s.ProcessState == nil {
				kill(i)
			}
		}
	}()
	for i := range servers {
		if err := start(i); err != nil {
			return err
		}
	}
	ds, stop, err := r.three(ctx, "nats", strings.Join(urls, ","))
	if err != nil {
		return err
	}
	defer func() { stop() }()
	return r.kills(ctx, &ds, "kill -9 of an owner and a NATS server, --nats, stock timers", "<= 12 s", "", kill, start)
}

// kills kills b and c in turn, and starts them again; kill and back do the
// same with what shares their machine.
func (r *runner) kills(ctx context.Context, ds *[3]*driver, what, must, aim string, kill, back func(i int) error) error {
	a := ds[0]
	if err := a.kind(ctx, r, "counter-c", "counter-c", 64); err != nil {
		return err
	}
	if _, err := a.do(order{Kind: "counter-c", Method: "relay", Type: jsonType, Keys: 500, Callers: 16, Each: true}); err != nil {
		return err
	}
	acked, unknown := 500, 0
	var gaps []float64
	for i := range 4 * r.Rounds {
		victim := 1 + i%2
		if err := a.begin(order{Kind: "counter-c", Method: "relay", Type: jsonType, Keys: 500, Callers: 16, For: 9 * time.Second}); err != nil {
			return err
		}
		time.Sleep(2 * time.Second)
		ds[victim].kill()
		if err := kill(victim); err != nil {
			return err
		}
		t, err := a.end()
		if err != nil {
			return err
		}
		acked, unknown = acked+t.Calls, unknown+t.Failed
		gaps = append(gaps, t.Lat[100].Seconds())
		r.logf("kill %d: longest wait %.2f s, %d calls, %d without an answer %s", i+1, t.Lat[100].Seconds(), t.Calls, t.Failed, t.Err)
		if err := back(victim); err != nil {
			return err
		}
		if ds[victim], err = r.again(ctx, ds[victim]); err != nil {
			return err
		}
		if err := r.whole(ctx, *ds); err != nil {
			return err
		}
	}
	own, sent, err := r.tally(ctx, a)
	if err != nil {
		return err
	}
	r.value(what+": longest wait of a call", "s", []float64{slices.Max(gaps)}, must, aim)
	r.value("the same, median of kills", "s", gaps, "", "")
	r.value("acknowledged turns lost", "turns", []float64{float64(max(0, acked-own))}, "0", "0")
	r.value("turns doubled, beyond those without an answer", "turns", []float64{float64(max(0, own-acked-unknown))}, "0", "0")
	r.value("messages of turns lost or doubled", "messages", []float64{float64(max(own-sent, sent-own))}, "0", "0")
	return nil
}

// again starts a driver that was killed.
func (r *runner) again(ctx context.Context, d *driver) (*driver, error) {
	dir, port, err := r.place(d.site)
	if err != nil {
		return nil, err
	}
	return r.driverAt(ctx, dir, d.name, d.nats, port)
}

// tally adds up what the relays have counted, and what came of their messages.
func (r *runner) tally(ctx context.Context, d *driver) (own, sent int, err error) {
	get := func(key string) (n int, err error) {
		a, err := d.CallAgent(ctx, api.AgentInvocation{Address: lode.Address{Name: "counter-c", Key: key}, Method: "get"})
		if err != nil {
			return 0, err
		}
		defer a.Body.Close()
		err = json.NewDecoder(a.Body).Decode(&n)
		return n, err
	}
	for range 100 { // until all messages have come
		own, sent = 0, 0
		for i := range 500 {
			n, err := get(fmt.Sprintf("k%d", i))
			if err != nil {
				return 0, 0, err
			}
			own += n
		}
		for i := range 10 {
			n, err := get(fmt.Sprintf("sink%d", i))
			if err != nil {
				return 0, 0, err
			}
			sent += n
		}
		if own == sent {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	return own, sent, nil
}
