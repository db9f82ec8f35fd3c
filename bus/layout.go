package bus

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"lode"
)

// Member is a node that keeps a copy of the bus.
type Member struct {
	Node  lode.NodeID `json:"node"`
	Route string      `json:"route"` // host:port where the other members reach it
}

// Layout says which nodes keep the bus. Each change of them makes a new
// generation, with a copy of everything; the highest one that is committed is
// the truth. The zero Layout is that of a node that has none yet.
type Layout struct {
	Cluster    string   `json:"cluster"`    // which cluster of Lode it is: 32 hexadecimal digits
	Generation uint64   `json:"generation"` // from 1
	Members    []Member `json:"members"`    // 1, 3 or 5
	// Secret is what members of this generation tell each other by, beside
	// their certificates: 32 hexadecimal digits.
	Secret string `json:"secret,omitempty"`
	// External: a cluster of the user's own keeps the bus. Then Members says
	// nothing.
	External bool `json:"external,omitempty"`
}

func (l Layout) where() string {
	if l.External {
		return "in a NATS cluster of its own"
	}
	return "on its nodes"
}

// Has reports whether a node is a member.
func (l Layout) Has(n lode.NodeID) bool {
	return slices.ContainsFunc(l.Members, func(m Member) bool { return m.Node == n })
}

func (l Layout) check() error {
	if n := len(l.Members); n != 1 && n != 3 && n != 5 {
		return lode.Errorf(lode.Invalid, "a bus has 1, 3 or 5 members, not %d", n)
	}
	for i, m := range l.Members {
		if m.Node == "" || slices.ContainsFunc(l.Members[:i], func(o Member) bool { return o.Node == m.Node }) {
			return lode.Errorf(lode.Invalid, "member %q of the bus has no name, or is named twice", m.Node)
		}
		if _, _, err := net.SplitHostPort(m.Route); err != nil && len(l.Members) > 1 {
			return lode.Errorf(lode.Invalid, "member %s of the bus has no address to be reached at: %w", m.Node, err)
		}
	}
	return nil
}

// The layout of a node is kept in its folder as layout.json: the JSON of
// Layout. The store of generation 1 is the folder store, that of generation n
// store-n; a store with a file "formed" beside its content (store-n.formed,
// empty) has been part of its generation, and may vote in it.
const layoutFile = "layout.json"

func readLayout(dir string) (l Layout, found bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, layoutFile))
	if errors.Is(err, fs.ErrNotExist) {
		return l, false, nil
	}
	if err != nil {
		return l, false, lode.Errorf(lode.Unavailable, "read the layout of the bus: %w", err)
	}
	if err := json.Unmarshal(b, &l); err != nil || l.Generation == 0 {
		return l, false, lode.Errorf(lode.Damaged, "%s cannot be read: %v", filepath.Join(dir, layoutFile), err).
			WithHint("if other nodes of the cluster are well, empty the folder and start the node again: it gets everything from them")
	}
	return l, true, nil
}

// writeLayout replaces the file; it is on the disk when it returns.
func writeLayout(dir string, l Layout) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return lode.Errorf(lode.Internal, "write the layout of the bus: %w", err)
	}
	if err := writeFile(filepath.Join(dir, layoutFile), append(b, '\n')); err != nil {
		return lode.Errorf(lode.Unavailable, "write the layout of the bus: %w", err)
	}
	return nil
}

// writeFile puts a whole file on the disk, or leaves the old one.
func writeFile(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func storeDir(dir string, generation uint64) string {
	if generation == 1 {
		return filepath.Join(dir, "store")
	}
	return filepath.Join(dir, "store-"+utoa(generation))
}

func formedFile(dir string, generation uint64) string { return storeDir(dir, generation) + ".formed" }

// formed reports whether this node's store has been part of a generation.
func formed(dir string, l Layout) bool {
	if len(l.Members) == 1 {
		_, err := os.Stat(storeDir(dir, l.Generation))
		return err == nil || l.Generation == 1
	}
	_, err := os.Stat(formedFile(dir, l.Generation))
	_, serr := os.Stat(storeDir(dir, l.Generation))
	return err == nil && serr == nil
}
