package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/node"
)

// agentsNode is a node that also makes load: callers inside the cluster, as
// agents and functions are, without HTTP. It is told what to do by lines of
// JSON on its standard input and answers each with one.
func agentsNode(ctx context.Context, args []string, in io.Reader, stdout io.Writer) error {
	if len(args) < 4 {
		return lode.Errorf(lode.Invalid, "want a folder, a name, URLs of NATS or nothing, a port, and where to join")
	}
	port, err := strconv.Atoi(args[3])
	if err != nil {
		return lode.Errorf(lode.Invalid, "port %q", args[3])
	}
	cfg := node.Config{Dir: args[0], Name: args[1], Listen: "127.0.0.1:" + args[3], Peers: fmt.Sprintf("127.0.0.1:%d", port+1), Routes: fmt.Sprintf("127.0.0.1:%d", port+2)}
	if args[2] != "" {
		cfg.NATS = &node.NATS{URL: args[2]}
	}
	if len(args) > 5 {
		cfg.Join = func(context.Context) (string, string, error) { return args[4], args[5], nil }
	}
	n, err := node.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer n.Close(context.WithoutCancel(ctx))
	fmt.Fprintln(stdout, "ready")
	s := bufio.NewScanner(in)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var o order
		if err := json.Unmarshal(s.Bytes(), &o); err != nil {
			return lode.Errorf(lode.Invalid, "an order that cannot be read: %w", err)
		}
		b, err := json.Marshal(o.run(ctx, n))
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s\n", b)
	}
	return nil
}

// order is a load that an agentsNode makes.
type order struct {
	Kind    lode.Name     `json:"kind"`
	Method  string        `json:"method"`
	Body    []byte        `json:"body"`
	Type    string        `json:"type"`    // content type of Body
	Keys    int           `json:"keys"`    // of agents: k0, k1 ...
	First   int           `json:"first"`   // number of the first key
	Callers int           `json:"callers"` // each calls one key after another
	For     time.Duration `json:"for"`
	Each    bool          `json:"each"`   // once for each key, instead of For
	Only    lode.NodeID   `json:"only"`   // agents of this node alone; "": all
	Not     lode.NodeID   `json:"not"`    // agents of other nodes than this
	Trim    bool          `json:"trim"`   // snapshots are taken and the journal is trimmed meanwhile, again and again
	Forget  bool          `json:"forget"` // no agent is in memory when it begins
	Profile string        `json:"profile"`
}

// told is what came of an order.
type told struct {
	Calls   int             `json:"calls"`
	Elapsed time.Duration   `json:"elapsed"`
	Lat     []time.Duration `json:"lat"` // quantiles: 0, 1, .. 100 %
	P999    time.Duration   `json:"p999"`
	Failed  int             `json:"failed"`
	Gap     time.Duration   `json:"gap"` // longest time in which no call ended
	Err     string          `json:"err,omitempty"`
}

func (o *order) run(ctx context.Context, n *node.Node) (t told) {
	if o.Profile != "" {
		f, err := os.Create(filepath.Clean(o.Profile))
		if err == nil {
			defer f.Close()
			if pprof.StartCPUProfile(f) == nil {
				defer pprof.StopCPUProfile()
			}
		}
	}
	keys := o.keys(n)
	if len(keys) == 0 {
		return told{Err: "no agent is where the order wants it"}
	}
	var (
		next, failed atomic.Int64
		lats         = make([][]time.Duration, o.Callers)
		wg           sync.WaitGroup
		mu           sync.Mutex
		first        error
		last         atomic.Int64
		gap          atomic.Int64
	)
	if o.Forget {
		n.Agents().Passivate()
	}
	tctx, cancel := context.WithCancel(ctx)
	if o.Trim {
		wg.Go(func() {
			for tctx.Err() == nil {
				n.Agents().Trim(tctx)
			}
		})
	}
	began := time.Now()
	end := began.Add(o.For)
	var calling sync.WaitGroup
	for i := range lats {
		calling.Go(func() {
			for {
				k := int(next.Add(1)) - 1
				start := time.Now()
				if o.Each && k >= len(keys) || !o.Each && !start.Before(end) {
					return
				}
				c := &lode.AgentCall{Namespace: lode.DefaultNamespace, Kind: o.Kind, Key: keys[k%len(keys)], Method: o.Method, Body: o.Body,
					Head: []lode.Pair{{Key: "content-type", Value: o.Type}}}
				r, err := n.Agents().Call(ctx, c)
				if err == nil && r.Status >= 400 {
					err = fmt.Errorf("status %d: %s", r.Status, r.Body)
				}
				now := time.Now()
				if err != nil {
					failed.Add(1)
					mu.Lock()
					first = err
					mu.Unlock()
					continue
				}
				lats[i] = append(lats[i], now.Sub(start))
				at := int64(now.Sub(began))
				if d := at - last.Swap(at); d > gap.Load() {
					gap.Store(d)
				}
			}
		})
	}
	calling.Wait()
	t.Elapsed = time.Since(began)
	cancel()
	wg.Wait()
	all := slices.Concat(lats...)
	slices.Sort(all)
	t.Calls, t.Failed, t.Gap = len(all), int(failed.Load()), time.Duration(gap.Load())
	for q := range 101 {
		if len(all) > 0 {
			t.Lat = append(t.Lat, all[min(len(all)-1, q*len(all)/100)])
		}
	}
	if len(all) > 0 {
		t.P999 = all[len(all)*999/1000]
	}
	if first != nil {
		t.Err = first.Error()
	}
	runtime.GC()
	return t
}

// keys are the agents that an order is about.
func (o *order) keys(n *node.Node) []string {
	var out []string
	for i := o.First; len(out) < o.Keys && i < o.First+64*o.Keys; i++ {
		k := "k" + strconv.Itoa(i)
		if o.Only != "" || o.Not != "" {
			at, ok := n.AgentNode(lode.DefaultNamespace, o.Kind, k)
			if !ok || o.Only != "" && at != o.Only || o.Not != "" && at == o.Not {
				continue
			}
		}
		out = append(out, k)
	}
	return out
}
