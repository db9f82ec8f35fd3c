package node

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"lode"
)

// hosts are the names by which a node off loopback is reached.
func (n *Node) hosts() []string {
	out := append([]string{}, n.cfg.Hosts...)
	if host, _, err := net.SplitHostPort(n.cfg.Listen); err == nil && net.ParseIP(host) == nil {
		out = append(out, host)
	}
	if h, err := os.Hostname(); err == nil {
		out = append(out, h)
	}
	return out
}

// ready says why this node should not be sent requests, for load balancers.
func (n *Node) ready(context.Context) error {
	select {
	case <-n.open:
	default:
		return lode.Errorf(lode.Unavailable, "this node is starting")
	}
	if err := n.fleet.members.Expelled(); err != nil {
		return err
	}
	if n.fleet.leaves(n.fleet.id) {
		return lode.Errorf(lode.Unavailable, "this node drains")
	}
	return nil
}

// linger is how long the gateway goes on answering while the node closes: only
// where there is another node to go to.
func (n *Node) linger() time.Duration {
	if len(n.fleet.known()) < 2 {
		return 0
	}
	return 3 * time.Second
}

// freeMemory is what this machine could still give, in bytes; 0 where that is
// not known.
func freeMemory() int64 { return memInfo("MemAvailable:") }

func totalMemory() int64 { return memInfo("MemTotal:") }

func memInfo(field string) int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseInt(f[0], 10, 64)
				return n << 10
			}
		}
	}
	return 0
}
