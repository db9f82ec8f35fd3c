package node

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"lode"
	"lode/api"
	"lode/bus"
	"lode/catalog"
)

// tokens keeps what callers prove themselves with: hashes in a table of the
// bus, key = id. It is mirrored in memory, so that a request asks nobody, and
// goes on being let in while the bus is out.
type tokens struct {
	table  *bus.Table
	sealer *catalog.KeyFile
	now    func() time.Time
	stop   context.CancelFunc
	done   chan struct{} // the mirror has ended

	mu     sync.Mutex
	mirror map[string]keptToken
	synced bool // the mirror has seen all that there is
}

// lateToken is how long the bus is asked for a token that the mirror does not
// have: it may have been made on another node a moment ago.
const lateToken = time.Second

// keptToken is the record.
type keptToken struct {
	api.Token
	Hash  string      `json:"hash"`
	Admin bool        `json:"admin,omitempty"` // a node's own
	Node  lode.NodeID `json:"node,omitempty"`  // whose own; "": of the first, when it was alone
	// Key is the secret key of an AWS key pair, sealed.
	Key []byte `json:"key,omitempty"`
}

func openTokens(ctx context.Context, b *bus.Bus, sealer *catalog.KeyFile, now func() time.Time) (*tokens, error) {
	t, err := b.Table(ctx, "tokens")
	if err != nil {
		return nil, err
	}
	out := &tokens{table: t, sealer: sealer, now: now, mirror: map[string]keptToken{}, done: make(chan struct{})}
	ctx, out.stop = context.WithCancel(context.WithoutCancel(ctx))
	go out.follow(ctx)
	return out, nil
}

// close ends the mirror.
func (t *tokens) close() error {
	t.stop()
	<-t.done
	return nil
}

// follow mirrors the table until ctx ends.
func (t *tokens) follow(ctx context.Context) {
	defer close(t.done)
	for ctx.Err() == nil {
		if w, err := t.table.Watch(ctx, ""); err == nil {
			t.take(ctx, w)
			w.Close()
		}
		wait(ctx, time.Second)
	}
}

// take follows one watch to its end.
func (t *tokens) take(ctx context.Context, w *bus.Watch) {
	fresh := map[string]keptToken{} // until the watch has shown all there is
	for {
		c, err := w.Next(ctx)
		if err != nil {
			return
		}
		t.mu.Lock()
		into := fresh
		if fresh == nil {
			into = t.mirror
		}
		var k keptToken
		switch {
		case c.Op == bus.Synced:
			t.mirror, t.synced, fresh = fresh, true, nil
		case c.Op == bus.Set && json.Unmarshal(c.Value, &k) == nil:
			into[c.Key] = k
		default:
			delete(into, c.Key)
		}
		t.mu.Unlock()
	}
}

func (t *tokens) mintAdmin(ctx context.Context, node lode.NodeID) (string, error) {
	old, err := t.table.List(ctx, "")
	if err != nil {
		return "", err
	}
	for _, e := range old {
		var k keptToken
		if json.Unmarshal(e.Value, &k) == nil && k.Admin && (k.Node == node || k.Node == "" && len(old) == 1) {
			if err := t.RevokeToken(ctx, k.ID); err != nil {
				return "", err
			}
		}
	}
	id, token := api.MintToken()
	k := keptToken{Token: api.Token{ID: id, Role: api.RoleAdmin, Note: "of node " + string(node), Created: t.now().UTC()}, Hash: api.HashToken(token), Admin: true, Node: node}
	return token, t.keep(ctx, k)
}

func (t *tokens) keep(ctx context.Context, k keptToken) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	_, err = t.table.Create(ctx, k.ID, b)
	return err
}

func (t *tokens) lookup(ctx context.Context, id string) (keptToken, bool, error) {
	t.mu.Lock()
	k, ok := t.mirror[id]
	synced := t.synced
	t.mu.Unlock()
	if ok {
		return k, true, nil
	}
	lctx, cancel := context.WithTimeout(ctx, lateToken)
	defer cancel()
	e, ok, err := t.table.Get(lctx, id)
	if err != nil && synced && lode.KindOf(err) != lode.Damaged {
		return k, false, nil // the bus is out, and all that was known is not this
	}
	if err != nil || !ok {
		return k, false, err
	}
	if err := json.Unmarshal(e.Value, &k); err != nil {
		return k, false, lode.Errorf(lode.Damaged, "the record of token %s: %w", id, err)
	}
	return k, true, nil
}

func (t *tokens) forget(id string) {
	t.mu.Lock()
	delete(t.mirror, id)
	t.mu.Unlock()
}

// Authenticate finds the grant of a token as it was sent.
func (t *tokens) Authenticate(ctx context.Context, token string) (api.Grant, error) {
	refused := lode.Errorf(lode.Unauthenticated, "the token is not known here").WithHint("run `lode login`, or take the token from DIR/admin.token of the node")
	id, ok := api.TokenID(token)
	if !ok {
		return api.Grant{}, refused
	}
	k, ok, err := t.lookup(ctx, id)
	if err != nil {
		return api.Grant{}, err
	}
	if !ok || !api.TokenMatches(token, k.Hash) {
		return api.Grant{}, refused
	}
	if !k.Expires.IsZero() && !t.now().Before(k.Expires) {
		return api.Grant{}, lode.Errorf(lode.Unauthenticated, "token %s expired on %s", id, k.Expires.Format(time.RFC3339)).
			WithHint("ask an admin for a new one: lode token create")
	}
	return api.Grant{Token: id, Role: k.Role, Namespace: k.Namespace, Expires: k.Expires}, nil
}

// CreateToken returns the only copy of the token.
func (t *tokens) CreateToken(ctx context.Context, s api.TokenSpec) (api.NewToken, error) {
	id, token := api.MintToken()
	k := keptToken{Token: api.Token{ID: id, Role: s.Role, Namespace: s.Namespace, Note: s.Note, Created: t.now().UTC()}, Hash: api.HashToken(token)}
	if s.For > 0 {
		k.Expires = k.Created.Add(s.For)
	}
	out := api.NewToken{Secret: token}
	if s.AWS {
		out.AWSAccessKey, out.AWSSecretKey = api.AWSAccessKey(id), api.MintAWSSecret()
		k.AWS = out.AWSAccessKey
		var err error
		if k.Key, err = t.sealer.Seal([]byte(out.AWSSecretKey)); err != nil {
			return api.NewToken{}, err
		}
	}
	if err := t.keep(ctx, k); err != nil {
		return api.NewToken{}, err
	}
	out.Token = k.Token
	return out, nil
}

// Secret is the secret key of an AWS key pair, and what its token may do.
func (t *tokens) Secret(ctx context.Context, access string) (string, api.Grant, error) {
	refused := lode.Errorf(lode.Unauthenticated, "the access key %.24q is not known here", access).WithHint("make a key pair with `lode token create --aws`")
	id, ok := api.AWSTokenID(access)
	if !ok {
		return "", api.Grant{}, refused
	}
	k, ok, err := t.lookup(ctx, id)
	if err != nil {
		return "", api.Grant{}, err
	}
	if !ok || len(k.Key) == 0 || !k.Expires.IsZero() && !t.now().Before(k.Expires) {
		return "", api.Grant{}, refused
	}
	secret, err := t.sealer.Open(k.Key)
	return string(secret), api.Grant{Token: id, Role: k.Role, Namespace: k.Namespace, Expires: k.Expires}, err
}

// ListTokens is ordered by id.
func (t *tokens) ListTokens(ctx context.Context, p api.Page) (api.List[api.Token], error) {
	entries, err := t.table.List(ctx, "")
	if err != nil {
		return api.List[api.Token]{}, err
	}
	var all []api.Token
	for _, e := range entries {
		var k keptToken
		if err := json.Unmarshal(e.Value, &k); err != nil {
			return api.List[api.Token]{}, lode.Errorf(lode.Damaged, "the record of token %s: %w", e.Key, err)
		}
		all = append(all, k.Token)
	}
	return page(all, p, func(t api.Token) string { return t.ID }), nil
}

// RevokeToken is idempotent.
func (t *tokens) RevokeToken(ctx context.Context, id string) error {
	e, ok, err := t.table.Get(ctx, id)
	if err != nil {
		return err
	}
	t.forget(id)
	if !ok {
		return nil
	}
	err = t.table.Delete(ctx, id, e.Rev)
	if lode.KindOf(err) == lode.Precondition { // somebody else revoked it meanwhile
		return nil
	}
	return err
}

var _ api.Tokens = (*tokens)(nil)
