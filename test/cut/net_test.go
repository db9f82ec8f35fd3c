//go:build linux

package cut

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// network is machines on a switch, each in a network namespace of its own, and
// the switch in another: the network of the machine itself is not touched.
//
//	switch: bridge "switch" 10.77.0.254, ports "to-NAME"
//	NAME:   "eth0" 10.77.0.N
type network struct {
	t      *testing.T
	prefix string
	addr   map[string]string // by machine
}

var networks atomic.Int32

// newNetwork builds one, or skips the test where that cannot be.
func newNetwork(t *testing.T, machines ...string) *network {
	t.Helper()
	if why := unable(); why != "" {
		t.Skip("no networks here: " + why)
	}
	n := &network{t: t, prefix: fmt.Sprintf("%s%d-%d-", labPrefix, os.Getpid(), networks.Add(1)), addr: map[string]string{"switch": "10.77.0.254"}}
	n.space("switch")
	n.ip("switch", "link", "add", "switch", "type", "bridge")
	n.ip("switch", "addr", "add", "10.77.0.254/24", "dev", "switch")
	n.ip("switch", "link", "set", "switch", "up")
	for i, m := range machines {
		n.addr[m] = fmt.Sprintf("10.77.0.%d", i+1)
		n.space(m)
		n.ip("switch", "link", "add", "to-"+m, "type", "veth", "peer", "name", "eth0", "netns", n.prefix+m)
		n.ip("switch", "link", "set", "to-"+m, "master", "switch", "up")
		n.ip(m, "addr", "add", n.addr[m]+"/24", "dev", "eth0")
		n.ip(m, "link", "set", "eth0", "up")
	}
	return n
}

func (n *network) space(machine string) {
	n.t.Helper()
	name := n.prefix + machine
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		n.t.Fatalf("ip netns add %s: %v\n%s", name, err, out)
	}
	n.t.Cleanup(func() { dropSpace(name) })
	n.ip(machine, "link", "set", "lo", "up")
}

// dropSpace ends what runs in a namespace, and removes it.
func dropSpace(name string) {
	pids, _ := exec.Command("ip", "netns", "pids", name).Output()
	for pid := range strings.FieldsSeq(string(pids)) {
		exec.Command("kill", "-9", pid).Run()
	}
	exec.Command("ip", "netns", "del", name).Run()
}

// ip runs the tool ip in a machine.
func (n *network) ip(machine string, args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", append([]string{"-n", n.prefix + machine}, args...)...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// unplug takes a machine's cable out: nothing comes or goes, and nobody is
// told. plug puts it back.
func (n *network) unplug(machine string) {
	n.t.Helper()
	n.ip("switch", "link", "set", "to-"+machine, "down")
}
func (n *network) plug(machine string) {
	n.t.Helper()
	n.ip("switch", "link", "set", "to-"+machine, "up")
}

// lose has packets of one machine for another get lost without a word, and not
// those of the other direction. found takes that back.
func (n *network) lose(from, to string) {
	n.t.Helper()
	n.ip(from, "neigh", "replace", n.addr[to], "lladdr", "02:de:ad:de:ad:01", "dev", "eth0", "nud", "permanent")
}

func (n *network) found(from, to string) {
	n.t.Helper()
	n.ip(from, "neigh", "del", n.addr[to], "dev", "eth0")
}

// narrow gives a machine a thin cable, in bits per second each way; 0 takes
// it back. It reports whether this kernel can.
func (n *network) narrow(machine, rate string) bool {
	n.t.Helper()
	for _, at := range [][2]string{{"switch", "to-" + machine}, {machine, "eth0"}} {
		args := []string{"-n", n.prefix + at[0], "qdisc", "replace", "dev", at[1], "root", "tbf", "rate", rate, "burst", "64kb", "latency", "100ms"}
		if rate == "" {
			args = []string{"-n", n.prefix + at[0], "qdisc", "del", "dev", at[1], "root"}
		}
		if out, err := exec.Command("tc", args...).CombinedOutput(); err != nil {
			n.t.Logf("tc %s: %v %s", strings.Join(args, " "), err, out)
			return false
		}
	}
	return true
}

// dial connects from a machine.
func (n *network) dial(ctx context.Context, machine, addr string) (conn net.Conn, err error) {
	within(n.prefix+machine, func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp", addr)
		return nil
	})
	return conn, err
}

// listen listens on a machine.
func (n *network) listen(machine, addr string) (ln net.Listener) {
	n.t.Helper()
	err := within(n.prefix+machine, func() (err error) { ln, err = net.Listen("tcp", addr); return err })
	if err != nil {
		n.t.Fatal(err)
	}
	return ln
}

// within calls f on a thread that is in a network namespace. What f opens
// belongs to that namespace for ever.
func within(space string, f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked where the way back fails: the thread ends with this goroutine
		err := enter(space, f)
		if err != errStuck {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

var errStuck = fmt.Errorf("this thread does not get out of the namespace")

// enter calls f in a network namespace on this thread, which must be locked.
func enter(space string, f func() error) error {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(home)
	there, err := unix.Open("/run/netns/"+space, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", space, err)
	}
	defer unix.Close(there)
	if err := unix.Setns(there, syscall.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", space, err)
	}
	err = f()
	if unix.Setns(home, syscall.CLONE_NEWNET) != nil {
		return errStuck
	}
	return err
}
