package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"lode"
	"lode/api"
)

// trio is three nodes of this machine, joined, each with its own folder and
// ports.
type trio struct {
	r     *runner
	nodes [3]*site
	guest bool // of a NATS cluster: the nodes are no members of the bus
}

// names of the nodes of a trio.
var trioNames = [3]string{"a", "b", "c"}

// trio starts three nodes below the folder dir and waits until each is a
// member of the bus. first are flags for the first node.
func (r *runner) trio(ctx context.Context, dir string, first ...string) (_ *trio, err error) {
	t := &trio{r: r}
	defer func() {
		if err != nil {
			t.stop()
		}
	}()
	if t.nodes[0], err = r.member(ctx, filepath.Join(dir, trioNames[0]), trioNames[0], nil, first...); err != nil {
		return nil, err
	}
	return t, t.grow(ctx, dir)
}

// grow adds the second and the third node to the first, and waits until each
// is a member of the bus.
func (t *trio) grow(ctx context.Context, dir string) (err error) {
	for i := 1; i < 3; i++ {
		if t.nodes[i], err = t.r.member(ctx, filepath.Join(dir, trioNames[i]), trioNames[i], t.nodes[0]); err != nil {
			return err
		}
	}
	return t.settled(ctx, 3)
}

// settled waits until n nodes are ready and members, as the first one that
// runs sees it.
func (t *trio) settled(ctx context.Context, n int) error {
	var last api.NodeList
	for range 600 {
		ready := 0
		if l, err := t.any().Nodes(ctx); err == nil {
			last = l
			for _, k := range l.Items {
				if k.State == api.NodeReady && (t.guest || k.Bus == api.BusMember) {
					ready++
				}
			}
			if ready == n && l.Cluster.Quorum && (t.guest || l.Cluster.Answering == n) && l.Cluster.Moving == "" {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return lode.Errorf(lode.Deadline, "the cluster is not whole after a minute: %+v", last)
}

// any is the first node that runs.
func (t *trio) any() *site {
	for _, s := range t.nodes {
		if s != nil && !s.down {
			return s
		}
	}
	return t.nodes[0]
}

func (t *trio) stop() {
	for _, s := range t.nodes {
		if s != nil && !s.down {
			s.stop()
		}
	}
}

// member starts a node on three free ports; with joins it is a node of that
// one's cluster.
func (r *runner) member(ctx context.Context, dir, name string, joins *site, flags ...string) (*site, error) {
	port, err := freePorts()
	if err != nil {
		return nil, err
	}
	flags = append(flags, "--name", name)
	if joins != nil {
		tok, err := joins.CreateJoinToken(ctx, api.JoinSpec{})
		if err != nil {
			return nil, fmt.Errorf("a token for %s: %w", name, err)
		}
		flags = append(flags, "--join", tok.Address, "--token", tok.Token)
	}
	return r.nodeAt(ctx, dir, port, flags...)
}

// restart starts a node that was stopped or killed, in its folder and on its
// ports.
func (r *runner) restart(ctx context.Context, s *site) (*site, error) {
	dir, port, err := r.place(s)
	if err != nil {
		return nil, err
	}
	return r.nodeAt(ctx, dir, port)
}

// place is the folder of a node, below the runner's, and its first port.
func (r *runner) place(s *site) (dir string, port int, err error) {
	_, p, err := net.SplitHostPort(s.addr)
	if err != nil {
		return "", 0, err
	}
	if port, err = strconv.Atoi(p); err != nil {
		return "", 0, err
	}
	dir, err = filepath.Rel(r.dir, s.dir)
	return dir, port, err
}

// kill ends a node as a power cut does.
func (s *site) kill() {
	s.down = true
	s.p.cmd.Process.Kill()
	s.p.cmd.Wait()
}

// freePorts finds a port that is free with the two behind it, below those that
// the system gives to connections: a node that is started again wants the same.
func freePorts() (int, error) {
	for range 1000 {
		if p := 20000 + 3*rand.IntN(4000); portFree(p) && portFree(p+1) && portFree(p+2) {
			return p, nil
		}
	}
	return 0, lode.Errorf(lode.Unavailable, "no three ports in a row are free")
}

func portFree(p int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
	if err != nil {
		return false
	}
	l.Close()
	return true
}
