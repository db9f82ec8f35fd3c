package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lode"
	"lode/api"
	"lode/cmd/build"
)

// benchAgents measures agents: calls between them, durable turns, how they are
// activated, moved, and taken over.
func benchAgents(ctx context.Context, r *runner) error {
	type part struct {
		name string
		run  func(context.Context) error
	}
	parts := []part{{"one", r.agentsOne}, {"partitions", r.agentsPartitions}, {"trim", r.agentsTrim}, {"idle", r.agentsIdle}, {"million", r.agentsMillion},
		{"three", r.agentsThree}, {"move", r.agentsMove}, {"kill", r.agentsKill}, {"nats", r.agentsNATS}}
	only := os.Getenv("LODE_BENCH_PART") // for whoever works on one of them
	for _, p := range parts {
		if only != "" && only != p.name {
			continue
		}
		r.logf("agents: %s", p.name)
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// driver is a node in a child that makes load inside itself.
type driver struct {
	*site
	in   io.WriteCloser
	out  *bufio.Reader
	name string
	nats string // URLs of NATS servers that keep its bus; "": the nodes do
}

// driver starts a node called name on three free ports; with joins it is a
// node of that one's cluster. nats are the URLs of NATS servers that keep the
// bus; "": the nodes do.
func (r *runner) driver(ctx context.Context, dir, name, nats string, joins *driver) (*driver, error) {
	port, err := freePorts()
	if err != nil {
		return nil, err
	}
	var more []string
	if joins != nil {
		tok, err := joins.CreateJoinToken(ctx, api.JoinSpec{})
		if err != nil {
			return nil, fmt.Errorf("a token for %s: %w", name, err)
		}
		more = []string{joins.peers(), tok.Token}
	}
	return r.driverAt(ctx, dir, name, nats, port, more...)
}

// peers is the address at which a node lets others in.
func (d *driver) peers() string {
	host, port, _ := net.SplitHostPort(d.addr)
	n, _ := strconv.Atoi(port)
	return net.JoinHostPort(host, strconv.Itoa(n+1))
}

func (r *runner) driverAt(ctx context.Context, dir, name, nats string, port int, more ...string) (*driver, error) {
	dir = filepath.Join(r.dir, dir)
	cmd := exec.CommandContext(ctx, r.Self, append([]string{"bench", "child", "agents-node", dir, name, nats, fmt.Sprint(port)}, more...)...)
	cmd.Stderr = r.stderr()
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "start %s: %w", r.Self, err)
	}
	d := &driver{site: &site{p: &process{cmd: cmd}, addr: fmt.Sprintf("127.0.0.1:%d", port), dir: dir}, in: in, out: bufio.NewReaderSize(out, 1<<20), name: name, nats: nats}
	if line, err := d.out.ReadString('\n'); err != nil || line != "ready\n" {
		d.stop()
		return nil, lode.Errorf(lode.Unavailable, "the node %s ended before it was ready", name)
	}
	token, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err == nil {
		d.Client, err = api.New(api.Config{URL: "http://" + d.addr, Token: strings.TrimSpace(string(token))})
	}
	if err != nil {
		d.stop()
	}
	return d, err
}

// begin gives an order; the result is read with end.
func (d *driver) begin(o order) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = d.in.Write(append(b, '\n'))
	return err
}

func (d *driver) end() (t told, err error) {
	line, err := d.out.ReadBytes('\n')
	if err != nil {
		return t, lode.Errorf(lode.Unavailable, "node %s gave no result: %w", d.name, err)
	}
	err = json.Unmarshal(line, &t)
	return t, err
}

// do is begin and end; failed calls are an error.
func (d *driver) do(o order) (told, error) {
	if err := d.begin(o); err != nil {
		return told{}, err
	}
	t, err := d.end()
	if err == nil && (t.Failed > 0 || t.Calls == 0) {
		err = lode.Errorf(lode.Internal, "%d of %d calls failed: %s", t.Failed, t.Calls+t.Failed, t.Err)
	}
	return t, err
}

func (t told) rate() float64 { return float64(t.Calls) / t.Elapsed.Seconds() }

// at is the latency at a percentage, in microseconds.
func (t told) at(percent int) float64 { return float64(t.Lat[percent].Nanoseconds()) / 1e3 }

// kind deploys one of the guests as a kind called name.
func (d *driver) kind(ctx context.Context, r *runner, guest string, name lode.Name, partitions int) error {
	a, err := r.guest(ctx, guest)
	if err != nil {
		return err
	}
	return d.deployKind(ctx, a, name, partitions)
}

func (s *site) deployKind(ctx context.Context, a *build.Artifact, name lode.Name, partitions int) error {
	has, err := s.HasBlob(ctx, a.Digest)
	if err == nil && !has {
		err = s.PutBlob(ctx, a.Digest, int64(len(a.Wasm)), strings.NewReader(string(a.Wasm)))
	}
	if err != nil {
		return err
	}
	f := function(a)
	f.Reuse = true
	f.Limits.Total = 30 * time.Second
	f.Agent = &lode.AgentSpec{Class: "counter", Partitions: partitions, Reentrant: lode.ReentrantRefuse, Reads: lode.ReadsLease, StateMax: 1 << 30, Mailbox: 1000}
	_, err = s.Deploy(ctx, lode.App{Name: name, Agents: map[lode.Name]lode.Function{name: f}}, api.DeployOptions{})
	return err
}

const jsonType, listType = "application/json", "application/vnd.lode.args+json"

// adds is the load of durable turns.
func adds(kind lode.Name, keys, callers int, d time.Duration) order {
	return order{Kind: kind, Method: "add", Body: []byte("1"), Type: jsonType, Keys: keys, Callers: callers, For: d}
}

// agentsOne: one node.
func (r *runner) agentsOne(ctx context.Context) error {
	d, err := r.driver(ctx, "one", "a", "", nil)
	if err != nil {
		return err
	}
	defer d.stop()
	for _, lang := range []string{"c", "go"} {
		if err := d.kind(ctx, r, "counter-"+lang, lode.Name("counter-"+lang), 64); err != nil {
			return err
		}
	}
	each := r.each(2 * time.Second)
	bare, err := r.start(ctx, "bench", "child", "httpd")
	if err != nil {
		return err
	}
	defer bare.stop()
	ask := map[string][]float64{}
	rates := map[string][]float64{}
	var http1, http64, plain []float64
	for i := -1; i < r.Rounds; i++ {
		for _, lang := range []string{"c", "go"} {
			kind := lode.Name("counter-" + lang)
			const says = 2000
			t, err := d.do(order{Kind: kind, Method: "ask", Body: fmt.Appendf(nil, `["%s/k1",%d]`, kind, says), Type: listType, Keys: 1, Callers: 1, For: each / 4})
			if err != nil {
				return err
			}
			all, err := d.do(adds(kind, 1000, 256, each))
			if err != nil {
				return err
			}
			if i >= 0 {
				ask[lang] = append(ask[lang], t.at(50)/says)
				rates[lang] = append(rates[lang], all.rate())
			}
		}
		one := load{addr: d.addr, path: "/agents/counter-c/k0/add", body: []byte("1"), callers: 1}
		many := one
		many.callers = 64
		a, err := one.run(ctx, each/2)
		if err != nil {
			return err
		}
		b, err := many.run(ctx, each/2)
		if err != nil {
			return err
		}
		c, err := (load{addr: bare.first, path: "/", body: []byte("1"), callers: 64}).run(ctx, each/2)
		if err != nil {
			return err
		}
		if a.failed+b.failed > 0 {
			return lode.Errorf(lode.Internal, "%d and %d requests failed", a.failed, b.failed)
		}
		if i >= 0 {
			http1, http64, plain = append(http1, a.at(0.5)/1e3), append(http64, b.rate()), append(plain, c.rate())
		}
	}
	r.value("agent to agent, 1 KB, read method, same node, C", "us", ask["c"], "<= 15 us", "5")
	r.value("the same, Go", "us", ask["go"], "", "")
	r.value("durable turn over HTTP, one agent, one caller, p50", "ms", http1, "<= 1 ms", "0.4")
	r.ratio("durable turns over HTTP, one agent, 64 callers, against bare net/http", "turns/s", http64, plain, "", "")
	r.value("the same, alone", "turns/s", http64, ">= 8000", "20,000")
	r.value("1,000 agents, 256 callers, durable, one node, C", "turns/s", rates["c"], ">= 80000", "200,000")
	r.value("the same, Go", "turns/s", rates["go"], "", "")
	return nil
}

// agentsPartitions: the same load on a kind with 256 partitions and with one.
func (r *runner) agentsPartitions(ctx context.Context) error {
	d, err := r.driver(ctx, "partitions", "a", "", nil)
	if err != nil {
		return err
	}
	defer d.stop()
	if err := d.kind(ctx, r, "counter-c", "many", 256); err != nil {
		return err
	}
	if err := d.kind(ctx, r, "counter-c", "single", 1); err != nil {
		return err
	}
	var many, single []float64
	for i := -1; i < r.Rounds; i++ {
		a, err := d.do(adds("many", 1000, 256, r.each(2*time.Second)))
		if err != nil {
			return err
		}
		b, err := d.do(adds("single", 1000, 256, r.each(2*time.Second)))
		if err != nil {
			return err
		}
		if i >= 0 {
			many, single = append(many, a.rate()), append(single, b.rate())
		}
	}
	r.ratio("256 partitions against one, same load", "turns/s", many, single, ">= 0.75", "1.0")
	return nil
}

// agentsTrim: turns while snapshots are taken and the journal is trimmed,
// against turns without.
func (r *runner) agentsTrim(ctx context.Context) error {
	d, err := r.driver(ctx, "trim", "a", "", nil)
	if err != nil {
		return err
	}
	defer d.stop()
	if err := d.kind(ctx, r, "counter-c", "counter-c", 64); err != nil {
		return err
	}
	if _, err := d.do(order{Kind: "counter-c", Method: "add", Body: []byte("1"), Type: jsonType, Keys: 20000, Callers: 64, Each: true}); err != nil {
		return err
	}
	var quiet, busy []float64
	for i := -1; i < r.Rounds; i++ {
		o := adds("counter-c", 20000, 16, r.each(3*time.Second))
		a, err := d.do(o)
		if err != nil {
			return err
		}
		o.Trim = true
		b, err := d.do(o)
		if err != nil {
			return err
		}
		if i >= 0 {
			quiet, busy = append(quiet, a.at(99)), append(busy, b.at(99))
		}
	}
	r.ratio("turns' p99 while snapshots are taken and the journal is trimmed, against without", "us", busy, quiet, "<= 2", "1.2")
	return nil
}

// agentsIdle: the first call of agents that are not in memory.
func (r *runner) agentsIdle(ctx context.Context) error {
	d, err := r.driver(ctx, "idle", "a", "", nil)
	if err != nil {
		return err
	}
	defer d.stop()
	for _, lang := range []string{"c", "go"} {
		if err := d.kind(ctx, r, "counter-"+lang, lode.Name("counter-"+lang), 64); err != nil {
			return err
		}
	}
	kib := "\"" + strings.Repeat("x", 1024) + "\""
	got := map[string][]float64{}
	for i := range r.Rounds {
		for _, lang := range []string{"c", "go"} {
			o := order{Kind: lode.Name("counter-" + lang), Method: "keep", Body: []byte(kib), Type: jsonType, Keys: 500, First: i * 500, Callers: 8, Each: true}
			if _, err := d.do(o); err != nil {
				return err
			}
			o.Method, o.Callers, o.Body, o.Forget = "get", 1, nil, true
			t, err := d.do(o)
			if err != nil {
				return err
			}
			got[lang] = append(got[lang], t.at(50))
		}
	}
	r.value("first call of an agent that is not in memory, state 1 KB, p50, C", "us", got["c"], "<= 2000 us", "200")
	r.value("the same, Go", "us", got["go"], "<= 2000 us", "200")
	return nil
}

// agentsMillion: a million agents with state that nobody calls.
func (r *runner) agentsMillion(ctx context.Context) error {
	n := 1_000_000
	if r.Each > 0 { // somebody is in a hurry
		n = 50_000
	}
	port, err := freePorts()
	if err != nil {
		return err
	}
	d, err := r.driverAt(ctx, "million", "a", "", port)
	if err != nil {
		return err
	}
	if err := d.kind(ctx, r, "counter-c", "counter-c", 64); err != nil {
		d.stop()
		return err
	}
	t, err := d.do(order{Kind: "counter-c", Method: "add", Body: []byte("1"), Type: jsonType, Keys: n, Callers: 256, Each: true})
	if err != nil {
		d.stop()
		return err
	}
	r.logf("%d agents made in %s", n, t.Elapsed.Round(time.Second))
	d.kill()
	began := time.Now()
	if d, err = r.driverAt(ctx, "million", "a", "", port); err != nil {
		return err
	}
	defer d.stop()
	if _, err := d.do(order{Kind: "counter-c", Method: "get", Type: jsonType, Keys: 1, First: n / 2, Callers: 1, Each: true}); err != nil {
		return err
	}
	took := time.Since(began)
	time.Sleep(r.each(10 * time.Second))
	r.value(fmt.Sprintf("%d idle agents with state: memory of the node", n), "MB", []float64{float64(d.p.rss()) / 1e6}, "<= 1000 MB", "300")
	r.value("the same: from its start after kill -9 to the first answer", "s", []float64{took.Seconds()}, "<= 20 s", "3")
	return nil
}

// raw is a TCP ping-pong of 1 KB.
func (r *runner) raw(addr string, d time.Duration) (float64, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, lode.Errorf(lode.Unavailable, "dial %s: %w", addr, err)
	}
	defer conn.Close()
	body, back := make([]byte, callSize), make([]byte, callSize)
	got, err := callers(1, d, func() error {
		if _, err := conn.Write(body); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, back)
		return err
	})
	return got.at(0.5), err
}

// three starts three drivers that are one cluster.
func (r *runner) three(ctx context.Context, dir, nats string) (ds [3]*driver, stop func(), err error) {
	stop = func() {
		for _, d := range ds {
			if d != nil {
				d.stop()
			}
		}
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	for i, name := range trioNames {
		var first *driver
		if i > 0 {
			first = ds[0]
		}
		if ds[i], err = r.driver(ctx, filepath.Join(dir, name), name, nats, first); err != nil {
			return ds, stop, err
		}
	}
	return ds, stop, r.whole(ctx, ds)
}

// whole waits until three nodes are ready.
func (r *runner) whole(ctx context.Context, ds [3]*driver) error {
	t := &trio{r: r, nodes: [3]*site{ds[0].site, ds[1].site, ds[2].site}, guest: ds[0].nats != ""}
	return t.settled(ctx, 3)
}

// agentsThree: three nodes.
func (r *runner) agentsThree(ctx context.Context) error {
	zmq, err := r.compileC(ctx, "zmq.c", "-lzmq")
	if err != nil {
		return lode.AsError(err).WithHint("bench/setup.sh tools installs ZeroMQ's headers")
	}
	echo, err := r.start(ctx, "bench", "child", "tcp-echo")
	if err != nil {
		return err
	}
	defer echo.stop()
	rep, err := startPlain(ctx, zmq, "serve")
	if err != nil {
		return err
	}
	defer rep.stop()
	ds, stop, err := r.three(ctx, "three", "")
	if err != nil {
		return err
	}
	defer stop()
	a := ds[0]
	if err := a.kind(ctx, r, "counter-c", "counter-c", 64); err != nil {
		return err
	}
	// Every partition gets an owner, and everything is loaded, before the clock
	// starts.
	if _, err := a.do(order{Kind: "counter-c", Method: "add", Body: []byte("1"), Type: jsonType, Keys: 1000, Callers: 16, Each: true}); err != nil {
		return err
	}
	each := r.each(2 * time.Second)
	var ask, tcp, zm, many, durable []float64
	for i := -1; i < r.Rounds; i++ {
		const says = 500
		p, err := r.raw(echo.first, each/4)
		if err != nil {
			return err
		}
		far, err := a.far("counter-c") // an agent that is called much from here soon moves here
		if err != nil {
			return err
		}
		t, err := a.do(order{Kind: "counter-c", Method: "ask", Body: fmt.Appendf(nil, `["counter-c/%s",%d]`, far, says), Type: listType, Keys: 1, First: 5000, Only: "a", Callers: 1, For: each / 4})
		if err != nil {
			return err
		}
		half, _, err := zmqCall(ctx, zmq, rep.first, each/4)
		if err != nil {
			return err
		}
		m, err := a.do(order{Kind: "counter-c", Method: "say", Body: []byte("\"" + strings.Repeat("x", 1024) + "\""), Type: jsonType, Keys: 500, Not: "a", Callers: 64, For: each})
		if err != nil {
			return err
		}
		sum, err := together(ds[:], adds("counter-c", 1000, 85, each))
		if err != nil {
			return err
		}
		if i >= 0 {
			ask, tcp, zm = append(ask, t.at(50)/says), append(tcp, p), append(zm, half)
			many, durable = append(many, m.rate()), append(durable, sum)
		}
	}
	r.ratio("agent to agent, 1 KB, read method, two processes, against raw TCP", "us", ask, tcp, "<= 3", "1.2")
	r.ratio("the same against C ZeroMQ", "us", ask, zm, "<= 1", "")
	r.value("64 callers across nodes", "calls/s", many, ">= 50000", "150,000")
	r.value("1,000 agents, 256 callers, durable, three nodes", "turns/s", durable, ">= 40000", "100,000")
	return nil
}

// far is the key of an agent that another node has.
func (d *driver) far(kind lode.Name) (string, error) {
	for i := range 1000 {
		p, err := d.ExplainNode(kind, fmt.Sprintf("k%d", i))
		if err == nil && p != "" && p != d.name {
			return fmt.Sprintf("k%d", i), nil
		}
	}
	return "", lode.Errorf(lode.NotFound, "node %s has all agents of %s", d.name, kind)
}

// ExplainNode names the node that has an agent.
func (d *driver) ExplainNode(kind lode.Name, key string) (string, error) {
	a, err := d.GetAgent(context.Background(), kind, key)
	return a.Node, err
}

// together gives an order to several nodes at once, and adds the rates up.
func together(ds []*driver, o order) (sum float64, err error) {
	for _, d := range ds {
		if err := d.begin(o); err != nil {
			return 0, err
		}
	}
	for _, d := range ds {
		t, terr := d.end()
		if terr == nil && t.Failed > 0 {
			terr = lode.Errorf(lode.Internal, "%d calls failed: %s", t.Failed, t.Err)
		}
		if terr != nil {
			err = terr
		}
		if t.Elapsed > 0 {
			sum += t.rate()
		}
	}
	return sum, err
}

// agentsMove: an agent is called without a break while its partition goes from
// node to node.
func (r *runner) agentsMove(ctx context.Context) error {
	ds, stop, err := r.three(ctx, "move", "")
	if err != nil {
		return err
	}
	defer stop()
	a := ds[0]
	if err := a.kind(ctx, r, "counter-c", "counter-c", 64); err != nil {
		return err
	}
	if _, err := a.do(order{Kind: "counter-c", Method: "add", Body: []byte("1"), Type: jsonType, Keys: 2000, Callers: 16, Each: true}); err != nil {
		return err
	}
	var pause, failed []float64
	for range max(r.Rounds, 5) {
		o := adds("counter-c", 1, 8, 4*time.Second)
		if err := a.begin(o); err != nil {
			return err
		}
		time.Sleep(500 * time.Millisecond)
		for _, to := range []lode.NodeID{"b", "c", "a"} {
			if _, err := a.MoveAgents(ctx, "counter-c", api.AgentMove{Key: "k0", To: to}); err != nil {
				return err
			}
			time.Sleep(500 * time.Millisecond)
		}
		t, err := a.end()
		if err != nil {
			return err
		}
		pause, failed = append(pause, float64(t.Lat[100].Microseconds())/1e3), append(failed, float64(t.Failed))
	}
	r.value("planned move under load: longest wait of a call", "ms", []float64{slices.Max(pause)}, "<= 300 ms", "20")
	r.value("planned move under load: longest wait, median of rounds", "ms", pause, "", "")
	r.value("planned move under load: failed calls", "calls", []float64{slices.Max(failed)}, "0", "0")
	return nil
}
