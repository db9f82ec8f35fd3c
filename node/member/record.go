package member

import (
	"encoding/json"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"lode"
)

// State is where a node stands in its life.
//
//	joining --(Announce)--> ready <--(SetState)--> draining --(SetState)--> drained --(SetState)--> ready
//
// From joining it may also be removed or taken over by another joiner of the
// name, after joiningFor. Announce leaves draining and drained as they are.
type State string

// The states of a node.
const (
	Joining  State = "joining"  // has its certificate and has not come up yet
	Ready    State = "ready"    // takes work, as far as it is alive
	Draining State = "draining" // takes no new work, and ends what it has
	Drained  State = "drained"  // has no work
)

// joiningFor is how long the name of a node that has not come up is kept for
// it. The same node, told by its key, gets the name at any time.
const joiningFor = 10 * time.Minute

// Record is what the cluster knows of a node: JSON in table "nodes" under its
// name. Whether it is alive is not in it.
type Record struct {
	Name        lode.NodeID       `json:"name"`
	Incarnation string            `json:"incarnation,omitempty"` // 32 random hexadecimal digits, new at each start
	Gateway     string            `json:"gateway"`               // HOST:PORT of the gateway
	Peers       string            `json:"peers"`                 // HOST:PORT of the peer port
	Bus         string            `json:"bus"`                   // HOST:PORT where members of the bus meet
	Zone        string            `json:"zone,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Version     string            `json:"version,omitempty"`
	CPU         int               `json:"cpu,omitempty"`    // cores
	Memory      int64             `json:"memory,omitempty"` // bytes
	GPU         []string          `json:"gpu,omitempty"`
	State       State             `json:"state"`
	Joined      time.Time         `json:"joined"`
	Started     time.Time         `json:"started,omitzero"` // zero: has never come up
	CertSerial  string            `json:"cert_serial"`      // 32 hexadecimal digits; the first 16 are the node's mark
}

// Bounds of what a record may hold; what a joiner sends is held to them.
const (
	maxAddr   = 270 // a host's name of 253, a colon, a port
	maxText   = 256
	maxLabels = 64
	maxGPU    = 64
)

func parseRecord(b []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, lode.Errorf(lode.Damaged, "a node's record: %w", err)
	}
	return r, r.check()
}

// check holds a record to its bounds. Invalid.
func (r *Record) check() error {
	if _, err := lode.ParseNodeID(string(r.Name)); err != nil {
		return err
	}
	for _, a := range []struct{ what, addr string }{{"gateway", r.Gateway}, {"peers", r.Peers}, {"bus", r.Bus}} {
		if err := checkAddr(a.what, a.addr); err != nil {
			return err
		}
	}
	if len(r.Labels) > maxLabels || len(r.GPU) > maxGPU {
		return lode.Errorf(lode.Invalid, "node %s has %d labels and %d GPUs; at most %d and %d", r.Name, len(r.Labels), len(r.GPU), maxLabels, maxGPU)
	}
	texts := slices.Concat([]string{r.Zone, r.Version, r.Incarnation, r.CertSerial}, r.GPU, slices.Collect(maps.Keys(r.Labels)), slices.Collect(maps.Values(r.Labels)))
	for _, s := range texts {
		if len(s) > maxText {
			return lode.Errorf(lode.Invalid, "node %s has a text of %d bytes in its record; at most %d", r.Name, len(s), maxText)
		}
	}
	if r.CPU < 0 || r.Memory < 0 {
		return lode.Errorf(lode.Invalid, "node %s has %d cores and %d bytes of memory", r.Name, r.CPU, r.Memory)
	}
	return nil
}

// checkAddr takes HOST:PORT, and "" for a door that a node does not have.
func checkAddr(what, addr string) error {
	if addr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	if n, e := strconv.Atoi(port); err != nil || e != nil || n < 1 || n > 65535 || host == "" || len(addr) > maxAddr {
		return lode.Errorf(lode.Invalid, "%q is no address for %s: want HOST:PORT", addr[:min(len(addr), maxAddr)], what)
	}
	return nil
}

// mark is the node's mark, 16 hexadecimal digits.
func (r *Record) mark() string { return markIn(r.CertSerial) }

// loopback reports whether only programs of the same machine reach addr.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// clone copies what the caller may change.
func (r Record) clone() Record {
	r.Labels, r.GPU = maps.Clone(r.Labels), slices.Clone(r.GPU)
	return r
}

// removal says that a node was removed, under "removed/MARK" in table "nodes".
type removal struct {
	Name    lode.NodeID `json:"name"`
	Removed time.Time   `json:"removed"`
}

const prefixRemoved = "removed/"

// removedFor is how long a removal is remembered: longer than a certificate
// lives.
const removedFor = nodeLife + 30*24*time.Hour

func (r removal) err() error {
	return lode.Errorf(lode.Gone, "node %s was removed from the cluster on %s", r.Name, stamp(r.Removed)).
		WithHint("to join again: lode token create --join on a node of the cluster, then lode up with a fresh folder, --join HOST and --token")
}
