package invoke

import (
	"net/netip"
	"strconv"
	"strings"

	"lode"
)

// egress is a function's Egress, ready to be asked. It is asked twice: for the
// host that a request names, and for each address that the host turned out to
// have, on the very address that is then dialled.
type egress struct {
	mode  string // public, none, list
	rules []egressRule
}

// egressRule is one entry of Allow: host, *.host or an address, with or
// without a port.
type egressRule struct {
	host     string // lower case, no final dot; behind "*." for a wildcard
	addr     netip.Addr
	wildcard bool
	port     uint16 // 0 = any
}

// newEgress reads e. An entry that cannot be read allows nothing.
func newEgress(e lode.Egress) *egress {
	p := &egress{mode: e.Mode}
	if p.mode == "" {
		p.mode = "public"
	}
	for _, entry := range e.Allow {
		if r, ok := parseRule(entry); ok {
			p.rules = append(p.rules, r)
		}
	}
	return p
}

func parseRule(s string) (r egressRule, ok bool) {
	host := strings.TrimSpace(s)
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return egressRule{addr: addr.Unmap()}, addr.Zone() == ""
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		port, err := strconv.ParseUint(host[i+1:], 10, 16)
		if err != nil || port == 0 {
			return r, false
		}
		host, r.port = host[:i], uint16(port)
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		r.addr = addr.Unmap()
		return r, addr.Zone() == ""
	}
	r.host, r.wildcard = strings.CutPrefix(foldHost(host), "*.")
	return r, r.host != "" && !strings.ContainsAny(r.host, "*:/ []")
}

// foldHost makes equal hosts equal strings.
func foldHost(host string) string { return strings.TrimSuffix(strings.ToLower(host), ".") }

// verdict is what a policy says of a host.
type verdict int

const (
	forbidden verdict = iota
	ifPublic          // only at public addresses
	anywhere          // at any address: an entry of Allow names the host itself
)

// host judges a host and port, before anything is resolved. A wildcard names
// no host, so what it allows must still be public: who owns a zone may point a
// name of it anywhere.
func (p *egress) host(host string, port uint16) verdict {
	if p.mode != "public" && p.mode != "list" {
		return forbidden
	}
	host = foldHost(host)
	addr, err := netip.ParseAddr(host)
	best := forbidden
	if p.mode == "public" {
		best = ifPublic
	}
	for i := range p.rules {
		r := &p.rules[i]
		switch {
		case r.port != 0 && r.port != port:
		case r.addr.IsValid():
			if err == nil && addr.Unmap() == r.addr {
				return anywhere
			}
		case r.wildcard:
			if strings.HasSuffix(host, "."+r.host) {
				best = max(best, ifPublic)
			}
		case r.host == host:
			return anywhere
		}
	}
	return best
}

// special are the blocks that are not public, of IANA's registries of special
// purpose addresses, and the one public address behind which a cloud hides its
// metadata service.
var special = func() (ps []netip.Prefix) {
	for _, s := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"168.63.129.16/32",
		"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
	} {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}()

// globalUnicast is where all public IPv6 addresses are. Loopback, mapped and
// compatible IPv4, NAT64, unique local, link-local and multicast lie outside.
var globalUnicast = netip.MustParsePrefix("2000::/3")

// public reports whether addr is an address of the public Internet. An IPv4
// address inside an IPv6 one counts as what it is, or is refused where the
// network translates it.
func public(addr netip.Addr) bool {
	if !addr.IsValid() || addr.Zone() != "" {
		return false
	}
	addr = addr.Unmap()
	if addr.Is6() {
		if !globalUnicast.Contains(addr) {
			return false
		}
		b := addr.As16() // ISATAP: xx00:5efe and an IPv4 address
		if b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe {
			return false
		}
	}
	for _, p := range special {
		if p.Contains(addr) {
			return false
		}
	}
	return true
}
