package member

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"

	"lode"
	"lode/bus"
)

// claim takes a name for a joiner.
type claim struct {
	j        *Joins
	record   Record
	mark     string
	csr      *x509.CertificateRequest
	explicit bool

	cert  []byte // DER, for record.Name
	rev   uint64 // of the record as it was written
	fresh bool   // there was no record of this node before
}

// maxNames bounds the numbers that are tried behind a name.
const maxNames = 1000

// take finds a name and writes the record under it.
func (c *claim) take(ctx context.Context, want lode.NodeID) error {
	t, err := c.j.cfg.Tables.Table(ctx, tableNodes)
	if err != nil {
		return err
	}
	if err := c.j.cfg.Members.gone(ctx, t, c.mark); err != nil {
		return err
	}
	authority, err := c.j.cfg.Authority.open(ctx)
	if err != nil {
		return err
	}
	if want, err = c.known(ctx, t, want); err != nil {
		return err
	}
	for n := 1; n <= maxNames; n++ {
		c.record.Name = numbered(want, n)
		if c.cert, err = authority.sign(c.csr.PublicKey, c.record.Name, c.j.cfg.Clock.Now()); err != nil {
			return err
		}
		leaf, err := x509.ParseCertificate(c.cert)
		if err != nil {
			return err
		}
		c.record.CertSerial = serialOf(leaf)
		taken, err := c.try(ctx, t)
		if err != nil || taken {
			return err
		}
		if c.explicit {
			return lode.Errorf(lode.Conflict, "the cluster has a node %s already", c.record.Name).
				WithHint("leave --name out or choose another; or remove that node: lode nodes rm %s. The token has not been used", c.record.Name)
		}
	}
	return lode.Errorf(lode.Conflict, "%s and %d names like it are taken", want, maxNames-1).WithHint("choose a name with --name")
}

// known looks for the joiner among the nodes: one that asks again keeps its
// name. What it left of a join under another name is taken away.
func (c *claim) known(ctx context.Context, t *bus.Table, want lode.NodeID) (lode.NodeID, error) {
	all, err := t.List(ctx, "")
	if err != nil {
		return "", err
	}
	for _, e := range all {
		r, err := parseRecord(e.Value)
		if strings.HasPrefix(e.Key, prefixRemoved) || err != nil || r.mark() != c.mark || r.Name == want {
			continue
		}
		switch {
		case !c.explicit:
			return r.Name, nil
		case r.State != Joining:
			return "", lode.Errorf(lode.Conflict, "the node of this folder is known as %s, not as %s", r.Name, want).WithHint("start it as --name %s, or take a fresh folder", r.Name)
		}
		if err := t.Delete(ctx, e.Key, e.Rev); err != nil {
			return "", err
		}
	}
	return want, nil
}

// try writes the record if its name is free; false if it is not.
func (c *claim) try(ctx context.Context, t *bus.Table) (bool, error) {
	for range swapTries {
		e, ok, err := t.Get(ctx, string(c.record.Name))
		if err != nil {
			return false, err
		}
		r := c.record
		if ok {
			old, err := parseRecord(e.Value)
			if err != nil {
				return false, err
			}
			same := old.mark() == c.mark
			if !same && (old.State != Joining || c.record.Joined.Sub(old.Joined) < joiningFor) {
				return false, nil
			}
			if same {
				r.Joined, r.State = old.Joined, old.State
			}
			c.fresh = !same
		} else {
			c.fresh = true
		}
		b, err := json.Marshal(r)
		if err != nil {
			return false, err
		}
		if ok {
			c.rev, err = t.Update(ctx, string(r.Name), b, e.Rev)
		} else {
			c.rev, err = t.Create(ctx, string(r.Name), b)
		}
		if k := lode.KindOf(err); k != lode.Precondition && k != lode.Conflict {
			c.record = r
			return err == nil, err
		}
	}
	return false, lode.Errorf(lode.Conflict, "the record of node %s is being changed by others all the time", c.record.Name).WithHint("try again")
}

// numbered is the n-th name to try: a, a-2, a-3 and so on.
func numbered(name lode.NodeID, n int) lode.NodeID {
	if n == 1 {
		return name
	}
	end := fmt.Sprintf("-%d", n)
	s := string(name)
	return lode.NodeID(strings.TrimRight(s[:min(len(s), 63-len(end))], "-") + end)
}

// undo takes the record back. If that fails it is one that has not come up,
// whose name is free after joiningFor.
func (c *claim) undo(ctx context.Context) {
	if !c.fresh {
		return
	}
	t, err := c.j.cfg.Tables.Table(ctx, tableNodes)
	if err == nil {
		err = t.Delete(ctx, string(c.record.Name), c.rev)
	}
	if err != nil {
		c.j.cfg.Logger.Warn("the record of a node that was refused stays", "node", c.record.Name, "error", err)
	}
}

// others is every node's record.
func (c *claim) others(ctx context.Context) ([]Record, error) {
	t, err := c.j.cfg.Tables.Table(ctx, tableNodes)
	if err != nil {
		return nil, err
	}
	all, err := t.List(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []Record
	for _, e := range all {
		if strings.HasPrefix(e.Key, prefixRemoved) {
			continue
		}
		if r, err := parseRecord(e.Value); err == nil && string(r.Name) == e.Key {
			out = append(out, r)
		} // else Members log it
	}
	return out, nil
}
