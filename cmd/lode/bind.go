package main

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"lode"
)

// The ports of a node: P its doors, P+1 other nodes, P+2 the bus.
const (
	stdPort  = 5633
	lastPort = 65535 - 2
)

// bound is where a node listens.
type bound struct {
	host   string
	port   int  // of the gateway; 0: the system chooses all three
	public bool // other machines can reach it
}

// address is the host with port P+n.
func (b bound) address(n int) string {
	if b.port == 0 {
		n = 0
	}
	return net.JoinHostPort(b.host, strconv.Itoa(b.port+n))
}

// parseBind reads --bind, a host or host:port, and --port.
func parseBind(bind string, port int, portGiven bool) (bound, error) {
	b := bound{host: strings.TrimSuffix(strings.TrimPrefix(bind, "["), "]"), port: port}
	if host, p, err := net.SplitHostPort(bind); err == nil {
		n, err := strconv.Atoi(p)
		if err != nil {
			return b, lode.Errorf(lode.Invalid, "--bind %s: %q is no port", bind, p)
		}
		if portGiven && n != port {
			return b, lode.Errorf(lode.Invalid, "--bind says port %d and --port says %d", n, port).WithHint("leave out one of them")
		}
		b.host, b.port = host, n
	}
	if b.port < 0 || b.port > lastPort {
		return b, lode.Errorf(lode.Invalid, "port %d: a node takes three ports, of which the first is at most %d", b.port, lastPort)
	}
	local, err := isLocalOnly(b.host)
	b.public = !local
	return b, err
}

// isLocalOnly reports whether only this machine reaches host.
func isLocalOnly(host string) (bool, error) {
	if host == "localhost" {
		return true, nil
	}
	addr, err := netip.ParseAddr(host)
	if err == nil {
		if addr.IsUnspecified() {
			return false, lode.Errorf(lode.Invalid, "--bind %s is every address and none: other nodes could not be told where this one is", host).
				WithHint("name one of this machine's own: %s", strings.Join(ownAddresses(), ", "))
		}
		return addr.Unmap().IsLoopback(), nil
	}
	all, err := net.LookupHost(host)
	if err != nil {
		return false, lode.Errorf(lode.Invalid, "--bind %s: %w", host, err).WithHint("an address of this machine: %s", strings.Join(ownAddresses(), ", "))
	}
	return !slices.ContainsFunc(all, func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err != nil || !a.Unmap().IsLoopback()
	}), nil
}

// ownAddresses are this machine's, without those that only it or its own link
// reaches.
func ownAddresses() []string {
	var out []string
	all, _ := net.InterfaceAddrs() // none, then
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if addr := p.Addr(); err == nil && addr.IsGlobalUnicast() && !addr.IsLinkLocalUnicast() {
			out = append(out, addr.String())
		}
	}
	if len(out) == 0 {
		return []string{"ip addr shows none"}
	}
	return out
}

// onThisMachine reports whether host is one of this machine's addresses.
func onThisMachine(host string) bool {
	if local, err := isLocalOnly(host); err == nil && local {
		return true
	}
	return slices.Contains(ownAddresses(), host)
}
