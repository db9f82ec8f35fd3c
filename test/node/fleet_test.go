//go:build linux

package node

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"lode/api"
)

// fleet is a cluster of real processes on this machine. A node that is started
// again has the folder and the ports of its former life.
type fleet struct {
	t     *testing.T
	nodes []*process // the last life of each
	ports []int
	args  []string
}

// fleetNames are the nodes of a fleet. The first is that of the lab, which the
// others join.
var fleetNames = []string{"here", "b", "c"}

// startFleet starts three nodes with the lab deployed, and waits until each is
// a member of the bus.
func startFleet(t *testing.T, args ...string) (*fleet, *sink) {
	t.Helper()
	labReady.Do(func() { makeLab(t) })
	s := newSink(t)
	f := &fleet{t: t, args: args, nodes: make([]*process, len(fleetNames)), ports: make([]int, len(fleetNames))}
	home := t.TempDir()
	copyDir(t, labDir(), f.dir(home, 0))
	began := time.Now()
	for i := range fleetNames {
		f.ports[i] = freePorts(t)
		if i == 0 {
			f.begin(i, f.dir(home, i))
		} else {
			f.join(i, f.dir(home, i))
		}
		f.nodes[i].ready()
	}
	f.settled(0, 1, 2)
	t.Logf("three members after %v", since(began))
	f.nodes[0].must(s.URL, "secret", "set", "SINK")
	return f, s
}

func (f *fleet) dir(home string, i int) string {
	dir := filepath.Join(home, fleetNames[i], "data")
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		f.t.Fatal(err)
	}
	return dir
}

func (f *fleet) begin(i int, dir string, args ...string) {
	f.t.Helper()
	args = append(append([]string{"--port", fmt.Sprint(f.ports[i])}, args...), f.args...)
	f.nodes[i] = begin(f.t, lab.lode, dir, nil, append(args, "--name", fleetNames[i]))
}

// join starts a node with an empty folder.
func (f *fleet) join(i int, dir string) {
	f.t.Helper()
	k, err := f.other(i).c.CreateJoinToken(f.t.Context(), api.JoinSpec{})
	if err != nil {
		f.t.Fatal(err)
	}
	f.begin(i, dir, "--join", k.Address, "--token", k.Token)
}

// again starts a node that has ended, and does not wait for it.
func (f *fleet) again(i int, args ...string) {
	f.t.Helper()
	f.begin(i, f.nodes[i].dir, args...)
}

// restart starts a node that has ended, and waits until it serves.
func (f *fleet) restart(i int, args ...string) *process {
	f.t.Helper()
	began := time.Now()
	f.again(i, args...)
	f.nodes[i].ready()
	f.t.Logf("%s serves again %v after its start", fleetNames[i], since(began))
	return f.nodes[i]
}

// kill ends a node as a power cut does.
func (f *fleet) kill(i int) {
	f.nodes[i].kill()
	f.t.Logf("killed %s", fleetNames[i])
}

// freeze stops a node with SIGSTOP; the function that is returned lets it go on.
func (f *fleet) freeze(i int) (thaw func()) {
	f.t.Helper()
	p := f.nodes[i].cmd.Process
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		f.t.Fatal(err)
	}
	return func() { p.Signal(syscall.SIGCONT) }
}

// ended reports whether the last life of a node is over.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// other is a node that runs, and is not i.
func (f *fleet) other(i int) *process {
	f.t.Helper()
	for j, p := range f.nodes {
		if j != i && p != nil && p.c != nil && !p.ended() {
			return p
		}
	}
	f.t.Fatal("no other node runs")
	return nil
}

// settled waits until each of these nodes sees each of them ready, a member of
// the bus and answering, and one of them as the keeper.
func (f *fleet) settled(want ...int) {
	f.t.Helper()
	var last api.NodeList
	var err error
	began := time.Now()
	for end := began.Add(2 * patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		whole := true
		for _, i := range want {
			if last, err = f.nodes[i].c.Nodes(f.t.Context()); err != nil || !f.whole(last, want) {
				whole = false
				break
			}
		}
		if whole {
			f.t.Logf("settled in %v", since(began))
			return
		}
	}
	f.t.Fatalf("the cluster is not whole: %v %+v", err, last)
}

func (f *fleet) whole(l api.NodeList, want []int) bool {
	ready, keeper := 0, false
	for _, n := range l.Items {
		for _, i := range want {
			if n.Name == fleetNames[i] {
				if n.State == api.NodeReady && n.Bus == api.BusMember {
					ready++
				}
				keeper = keeper || n.Name == l.Cluster.Keeper
			}
		}
	}
	return keeper && ready == len(want) && l.Cluster.Quorum && l.Cluster.Answering == len(want) && l.Cluster.Moving == ""
}

// keeper is who keeps, as node i sees it.
func (f *fleet) keeper() int {
	f.t.Helper()
	found := -1
	waitFor(f.t, "a keeper", func() bool {
		for _, p := range f.nodes {
			if p.c == nil || p.ended() {
				continue
			}
			l, err := p.c.Nodes(f.t.Context())
			if err != nil {
				continue
			}
			for j, n := range fleetNames {
				if n == l.Cluster.Keeper && !f.nodes[j].ended() {
					found = j
				}
			}
		}
		return found >= 0
	})
	return found
}

// lostTo waits until the others see that a node is gone.
func (f *fleet) lostTo(i int) {
	f.t.Helper()
	for j, p := range f.nodes {
		if j == i || p.ended() {
			continue
		}
		p.wait(fleetNames[i]+" to be lost", func() bool {
			n, err := p.c.GetNode(f.t.Context(), fleetNames[i])
			return err == nil && n.State == api.NodeLost
		})
	}
}

// freePorts finds a port that is free with the two behind it, below those that
// the system gives to connections: a node that is started again wants the same.
func freePorts(t *testing.T) int {
	t.Helper()
	for range 1000 {
		p := 12000 + 3*rand.IntN(2500)
		if _, taken := portsTaken.LoadOrStore(p, true); taken {
			continue
		}
		if portFree(p) && portFree(p+1) && portFree(p+2) {
			return p
		}
	}
	t.Fatal("no three ports in a row are free")
	return 0
}

// portsTaken are those that a test of this process got: tests run side by side.
var portsTaken sync.Map

func portFree(p int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func since(t time.Time) time.Duration { return time.Since(t).Round(10 * time.Millisecond) }
