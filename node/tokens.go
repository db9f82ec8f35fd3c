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
// bus, key = id.
type tokens struct {
	table  *bus.Table
	sealer *catalog.KeyFile
	now    func() time.Time

	mu    sync.Mutex
	cache map[string]cachedToken // by id; a hit spares the table
}

// cachedFor bounds how long a revoked token still opens a door.
const cachedFor = time.Second

type cachedToken struct {
	kept  keptToken
	until time.Time
}

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
	return &tokens{table: t, sealer: sealer, now: now, cache: map[string]cachedToken{}}, nil
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
	now := t.now()
	t.mu.Lock()
	c, ok := t.cache[id]
	t.mu.Unlock()
	if ok && now.Before(c.until) {
		return c.kept, true, nil
	}
	e, ok, err := t.table.Get(ctx, id)
	if err != nil || !ok {
		t.forget(id)
		return keptToken{}, false, err
	}
	var k keptToken
	if err := json.Unmarshal(e.Value, &k); err != nil {
		return keptToken{}, false, lode.Errorf(lode.Damaged, "the record of token %s: %w", id, err)
	}
	t.mu.Lock()
	t.cache[id] = cachedToken{k, now.Add(cachedFor)}
	t.mu.Unlock()
	return k, true, nil
}

func (t *tokens) forget(id string) {
	t.mu.Lock()
	delete(t.cache, id)
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
