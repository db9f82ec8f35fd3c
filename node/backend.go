package node

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"lode"
	"lode/api"
	"lode/catalog"
	"lode/invoke"
)

// backend is what stands behind /v1.
func (n *Node) backend() api.Backend {
	return api.Backend{Apps: apps{n}, Blobs: blobs{n}, Calls: calls{n}, Queues: queues{n}, Datasets: datasets{n}, Jobs: jobs{n}, Secrets: secrets{n},
		Tokens: n.tokens, Logs: logs{n}, Cluster: cluster{n}, Nodes: nodes{n}, Audit: n.audit, Agents: manage{n}}
}

// everywhere is backend for the whole cluster.
func (n *Node) everywhere() api.Backend {
	e := &api.Everywhere{Node: n.Name(), Own: n.backend(), Peers: func() []api.Peer {
		var out []api.Peer
		for _, p := range n.fleet.link.Peers() {
			if p.Up {
				out = append(out, api.Peer{Node: string(p.Node), Client: n.client(p.Node, "")})
			}
		}
		return out
	}}
	return e.Backend()
}

// queues are declared queues and how full they are.
type queues struct{ *Node }

func (q queues) ListQueues(ctx context.Context, ns lode.Namespace, p api.Page) (api.List[api.Queue], error) {
	var all []api.Queue
	for _, e := range q.catalog.List(ns, catalog.KindQueue) {
		v, err := q.queue(ctx, ns, e)
		if err != nil {
			return api.List[api.Queue]{}, err
		}
		all = append(all, v)
	}
	return page(all, p, func(v api.Queue) string { return string(v.Name) }), nil
}

func (q queues) GetQueue(ctx context.Context, ns lode.Namespace, name lode.Name) (api.Queue, error) {
	e, err := q.catalog.Get(ns, name)
	if err != nil {
		return api.Queue{}, err
	}
	if e.Queue == nil {
		return api.Queue{}, lode.Errorf(lode.NotFound, "%s is a %s, not a queue", name, e.Kind)
	}
	return q.queue(ctx, ns, e)
}

func (q queues) queue(ctx context.Context, ns lode.Namespace, e *catalog.Entry) (api.Queue, error) {
	s, err := q.invoke.Queue(ctx, ns, e.Name)
	return api.Queue{Name: e.Name, App: e.App, Spec: *e.Queue, Depth: int64(s.Depth), InFlight: int64(s.InFlight), Dead: int64(s.Dead), Oldest: s.Oldest, Consumers: s.Consumers}, err
}

// Doctor is what the node finds out about its own machine.
func (c cluster) Doctor(ctx context.Context) (api.List[api.Check], error) {
	checks := []api.Check{c.diskCheck(), c.spaceCheck(), c.busCheck(), c.engineCheck(), c.clockCheck()}
	return api.List[api.Check]{Items: checks}, nil
}

func (c cluster) diskCheck() api.Check {
	took, err := fsyncTime(c.dir.path)
	switch {
	case err != nil:
		return api.Check{Name: "disk", State: api.CheckFail, Detail: err.Error(), Advice: "the data folder must be on a disk that can be written"}
	case took > 20*time.Millisecond:
		return api.Check{Name: "disk", State: api.CheckWarn, Detail: fmt.Sprintf("an fsync takes %s", took.Round(time.Microsecond)), Advice: "everything acknowledged waits for one: a local SSD answers in under 1 ms"}
	}
	return api.Check{Name: "disk", State: api.CheckOK, Detail: fmt.Sprintf("an fsync takes %s", took.Round(time.Microsecond))}
}

// fsyncTime is the median of five writes of 4 KiB.
func fsyncTime(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took [5]time.Duration
	for i := range took {
		start := time.Now()
		if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took[i] = time.Since(start)
	}
	for i := range took { // five values: the third smallest
		for j := i + 1; j < len(took); j++ {
			if took[j] < took[i] {
				took[i], took[j] = took[j], took[i]
			}
		}
	}
	return took[2], nil
}

func (c cluster) spaceCheck() api.Check {
	free, ok := freeBytes(c.dir.path)
	if !ok {
		return api.Check{Name: "space", State: api.CheckOK, Detail: "not known on this system"}
	}
	ch := api.Check{Name: "space", State: api.CheckOK, Detail: bytesText(free) + " free in " + c.dir.path}
	if free < 1<<30 {
		ch.State, ch.Advice = api.CheckWarn, "make room: under 64 MiB every write is refused as full"
	}
	return ch
}

func (c cluster) busCheck() api.Check {
	s, h := c.bus.Stats(), c.health()
	ch := api.Check{Name: "bus", State: api.CheckOK, Detail: fmt.Sprintf("%s on disk here; %d copies of what is acknowledged", bytesText(s.Bytes), h.Copies)}
	if h.Copies == 1 {
		ch.Detail = fmt.Sprintf("%s, one copy: an acknowledged write survives a crash, not the loss of its disk", bytesText(s.Bytes))
	}
	switch {
	case !h.Quorum:
		ch.State, ch.Advice = api.CheckFail, orWord(h.Detail, "start the members of the bus that are missing: lode nodes")
	case h.Detail != "":
		ch.State, ch.Advice = api.CheckWarn, h.Detail
	}
	return ch
}

func (c cluster) engineCheck() api.Check {
	s := c.engine.Stats()
	ch := api.Check{Name: "engine", State: api.CheckOK, Detail: fmt.Sprintf("programs loaded: %d (%s); sandboxes: %d warm, %d retired", s.Loaded, bytesText(s.Bytes), s.Warm, s.Retired)}
	if runtime.GOOS != "linux" {
		ch.State, ch.Advice = api.CheckWarn, "sandboxes are reset by a whole copy here; Linux does it by the page"
	}
	return ch
}

// mostSkew is how far the clocks of two nodes may be apart before the doctor
// says so. Nothing durable rests on it; logs, schedules and deadlines do.
const mostSkew = 500 * time.Millisecond

func (c cluster) clockCheck() api.Check {
	ch := api.Check{Name: "clock", State: api.CheckOK, Detail: time.Now().UTC().Format(time.RFC3339)}
	for _, p := range c.fleet.link.Peers() {
		if !p.Up || p.Skew.Abs() <= mostSkew {
			continue
		}
		ch.State, ch.Advice = api.CheckWarn, "let a time service (chrony, systemd-timesyncd) set the clocks of all nodes"
		way := "ahead of"
		if p.Skew < 0 {
			way = "behind"
		}
		ch.Detail += fmt.Sprintf("; the clock of %s is %s %s this one", p.Node, p.Skew.Abs().Round(time.Millisecond), way)
	}
	return ch
}

var (
	_ api.Queues     = queues{}
	_ invoke.Catalog = resolver{}
)
