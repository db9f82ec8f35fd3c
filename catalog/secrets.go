package catalog

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"

	"lode"
	"lode/bus"
)

// MaxSecret is the most bytes of a secret's value.
const MaxSecret = 64 << 10

// A sealed value is the key NS/NAME, a zero byte and the value: what was sealed
// under one name does not open under another.

// secretCache has the sealed values in memory, and the open ones of those that
// were used.
type secretCache struct {
	mu  sync.RWMutex
	all map[string]*secret // by NS/NAME
}

type secret struct {
	sealed []byte
	rev    uint64
	opened bool
	plain  string
}

func secretKey(ns lode.Namespace, name string) (string, error) {
	if _, err := lode.ParseName(string(ns)); err != nil {
		return "", lode.Errorf(lode.Invalid, "namespace: %w", err)
	}
	ok := name != "" && len(name) <= 128 && (name[0] < '0' || name[0] > '9')
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_')
	}
	if !ok {
		return "", lode.Errorf(lode.Invalid, "%q is not the name of a secret: want letters, digits and underscores, as in STRIPE_KEY", name)
	}
	return string(ns) + "/" + name, nil
}

// loadSecrets reads the sealed values and follows them.
func (c *Catalog) loadSecrets(ctx, follow context.Context) error {
	w, err := c.sealed.Watch(follow, "")
	if err != nil {
		return err
	}
	c.secrets.all = make(map[string]*secret)
	for {
		ch, err := w.Next(ctx)
		if err != nil {
			w.Close()
			return err
		}
		if ch.Op == bus.Synced {
			break
		}
		c.secrets.set(ch)
	}
	c.followers.Go(func() {
		defer w.Close()
		for {
			ch, err := w.Next(follow)
			if err != nil {
				return
			}
			c.secrets.set(ch)
		}
	})
	return nil
}

func (s *secretCache) set(ch bus.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.all[ch.Key]; old != nil && old.rev >= ch.Rev {
		return
	}
	if ch.Op == bus.Deleted {
		delete(s.all, ch.Key)
		return
	}
	s.all[ch.Key] = &secret{sealed: ch.Value, rev: ch.Rev}
}

// SetSecret seals a value and keeps it. Functions see it from their next
// sandbox on.
func (c *Catalog) SetSecret(ctx context.Context, ns lode.Namespace, name string, value []byte) error {
	key, err := secretKey(ns, name)
	if err != nil {
		return err
	}
	if c.cfg.Sealer == nil {
		return lode.Errorf(lode.Unavailable, "this node has no key for secrets")
	}
	if len(value) > MaxSecret {
		return lode.Errorf(lode.TooLarge, "secret %s: %d bytes, at most %d", name, len(value), MaxSecret)
	}
	plain := append([]byte(key+"\x00"), value...)
	sealed, err := c.cfg.Sealer.Seal(plain)
	if err != nil {
		return err
	}
	rev, err := c.sealed.Put(ctx, key, sealed)
	if err != nil {
		return err
	}
	c.secrets.set(bus.Change{Op: bus.Set, Entry: bus.Entry{Key: key, Value: sealed, Rev: rev}})
	c.watchers.tell(c.Generation())
	return nil
}

// ListSecrets lists the names of the secrets of a namespace, sorted. There is
// no way to list values.
func (c *Catalog) ListSecrets(ns lode.Namespace) []string {
	c.secrets.mu.RLock()
	defer c.secrets.mu.RUnlock()
	var out []string
	for key := range c.secrets.all {
		if name, ok := strings.CutPrefix(key, string(ns)+"/"); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// RemoveSecret forgets a secret; NotFound if there is none.
func (c *Catalog) RemoveSecret(ctx context.Context, ns lode.Namespace, name string) error {
	key, err := secretKey(ns, name)
	if err != nil {
		return err
	}
	if !slices.Contains(c.ListSecrets(ns), name) {
		return c.noSecret(ns, name)
	}
	if err := c.sealed.Delete(ctx, key, 0); err != nil {
		return err
	}
	c.secrets.mu.Lock()
	delete(c.secrets.all, key)
	c.secrets.mu.Unlock()
	c.watchers.tell(c.Generation())
	return nil
}

func (c *Catalog) noSecret(ns lode.Namespace, name string) error {
	e := lode.Errorf(lode.NotFound, "secret %s is not set in namespace %s", name, ns)
	if near := lode.Suggest(name, c.ListSecrets(ns)); near != "" {
		return e.WithHint("did you mean %q?", near)
	}
	return e.WithHint("lode secret set %s", name)
}

// Secrets opens the named secrets. NotFound names the first that is not set.
func (c *Catalog) Secrets(ns lode.Namespace, names []string) (map[string]string, error) {
	if len(names) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(names))
	for _, name := range names {
		key, err := secretKey(ns, name)
		if err != nil {
			return nil, err
		}
		v, ok, err := c.openSecret(key)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, c.noSecret(ns, name)
		}
		out[name] = v
	}
	return out, nil
}

func (c *Catalog) openSecret(key string) (string, bool, error) {
	c.secrets.mu.RLock()
	s := c.secrets.all[key]
	if s == nil || s.opened {
		defer c.secrets.mu.RUnlock()
		if s == nil {
			return "", false, nil
		}
		return s.plain, true, nil
	}
	sealed, rev := s.sealed, s.rev
	c.secrets.mu.RUnlock()
	if c.cfg.Sealer == nil {
		return "", false, lode.Errorf(lode.Unavailable, "this node has no key for secrets")
	}
	plain, err := c.cfg.Sealer.Open(sealed)
	if err != nil {
		return "", false, lode.Errorf(lode.KindOf(err), "secret %s: %w", key, err)
	}
	value, ok := bytes.CutPrefix(plain, []byte(key+"\x00"))
	if !ok {
		return "", false, lode.Errorf(lode.Damaged, "secret %s was sealed under another name", key)
	}
	c.secrets.mu.Lock()
	defer c.secrets.mu.Unlock()
	if s := c.secrets.all[key]; s != nil && s.rev == rev {
		s.opened, s.plain = true, string(value)
	}
	return string(value), true, nil
}
