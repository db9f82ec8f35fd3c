package member

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"lode"
	"lode/bus"
)

// Token is a join token. As text it is
//
//	lj1.<64 hexadecimal digits: SHA-256 of the CA's DER>.<32 of a-z2-7: 20 random bytes>
type Token struct {
	CAHash string
	Secret string
}

var secretText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// ParseToken reads a token as it was printed; spaces around it do no harm.
func ParseToken(s string) (Token, error) {
	bad := func(what string) (Token, error) {
		return Token{}, lode.Errorf(lode.Invalid, "that is not a join token: %s", what).
			WithHint("a whole one looks like lj1.<64 digits>.<32 letters>; make one on a node of the cluster: lode token create --join")
	}
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, "lt_") {
		return bad("it is a token for the API")
	}
	parts := strings.Split(s, ".")
	if parts[0] != "lj1" {
		return bad("it does not begin with lj1")
	}
	if len(parts) != 3 {
		return bad("it has not three parts")
	}
	if b, err := hex.DecodeString(parts[1]); err != nil || len(b) != 32 || parts[1] != strings.ToLower(parts[1]) {
		return bad("its second part is no hash")
	}
	if b, err := secretText.DecodeString(parts[2]); err != nil || len(b) != 20 {
		return bad("its third part is cut off or changed")
	}
	return Token{parts[1], parts[2]}, nil
}

// ID is the token's id, which tells nothing of its secret.
func (t Token) ID() string { return tokenID(t.Secret) }

func (t Token) String() string { return "lj1." + t.CAHash + "." + t.Secret }

// Bounds of join tokens.
const (
	DefaultTokenLife = time.Hour
	maxTokenLife     = 30 * 24 * time.Hour
	maxTokenUses     = 100
	// keptFor is how long a token that has ended can be told from one that
	// never was.
	keptFor = 24 * time.Hour
)

const prefixJoin = "join/"

// TokenUse is one join by a token.
type TokenUse struct {
	Node lode.NodeID `json:"node"`
	From string      `json:"from"` // address
	At   time.Time   `json:"at"`
	Mark string      `json:"mark"` // of the node's key
}

// JoinToken is what is known of a join token. The secret is not.
type JoinToken struct {
	ID      string     `json:"id"`   // join-<12 hexadecimal digits>
	Uses    int        `json:"uses"` // how many nodes may join
	Used    []TokenUse `json:"used,omitempty"`
	Created time.Time  `json:"created"`
	Expires time.Time  `json:"expires"`
	Revoked time.Time  `json:"revoked,omitzero"`
}

// keptToken is the record.
type keptToken struct {
	JoinToken
	Hash string `json:"hash"` // SHA-256 of the secret, 64 hexadecimal digits
}

// ended is when the token ended; false if it has not.
func (t *JoinToken) ended(now time.Time) (time.Time, bool) {
	switch {
	case !t.Revoked.IsZero():
		return t.Revoked, true
	case len(t.Used) >= t.Uses:
		return t.Used[len(t.Used)-1].At, true
	case !now.Before(t.Expires):
		return t.Expires, true
	}
	return time.Time{}, false
}

// allows says whether the node of that mark may join by the token now. A node
// that did before, and lost the answer, may once more.
func (t *JoinToken) allows(now time.Time, mark string) error {
	again := slices.ContainsFunc(t.Used, func(u TokenUse) bool { return u.Mark == mark })
	const fresh = "make a fresh one on a node of the cluster: lode token create --join"
	switch {
	case !t.Revoked.IsZero():
		return lode.Errorf(lode.Unauthenticated, "the join token was revoked on %s", stamp(t.Revoked)).WithHint(fresh)
	case len(t.Used) >= t.Uses && !again:
		u := t.Used[len(t.Used)-1]
		e := lode.Errorf(lode.Unauthenticated, "the join token was used on %s by node %s from %s", stamp(u.At), u.Node, u.From)
		if t.Uses > 1 {
			e.Detail = strings.Replace(e.Detail, "was used", "was used up, the last time", 1)
		}
		return e.WithHint("%s (--uses N for several); if that was none of your nodes: lode nodes rm %s --force", fresh, u.Node)
	case !now.Before(t.Expires):
		return lode.Errorf(lode.Unauthenticated, "the join token expired on %s", stamp(t.Expires)).WithHint(fresh + " (--for 2h makes it last longer)")
	}
	return nil
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte("lode join " + secret))
	return hex.EncodeToString(sum[:])
}

// tokenID is the id of a token: "join-" and the beginning of its hash.
func tokenID(secret string) string { return "join-" + hashSecret(secret)[:12] }

// Left is how many nodes may still join by the token.
func (t *JoinToken) Left(now time.Time) int {
	if _, ended := t.ended(now); ended {
		return 0
	}
	return t.Uses - len(t.Used)
}

// CreateToken makes a token by which nodes may join, and returns the only copy
// of it. uses of 0 is one; life of 0 is an hour.
func (j *Joins) CreateToken(ctx context.Context, uses int, life time.Duration) (string, error) {
	if uses == 0 {
		uses = 1
	}
	if life == 0 {
		life = DefaultTokenLife
	}
	if uses < 0 || uses > maxTokenUses || life < 0 || life > maxTokenLife {
		return "", lode.Errorf(lode.Invalid, "a join token is for 1 to %d nodes and for at most %d days", maxTokenUses, maxTokenLife/(24*time.Hour))
	}
	t, err := j.table(ctx)
	if err != nil {
		return "", err
	}
	if _, err := j.sweep(ctx, t); err != nil {
		return "", err
	}
	raw := make([]byte, 20)
	rand.Read(raw) // never fails
	token := Token{j.cfg.Identity.CAHash(), secretText.EncodeToString(raw)}
	now := j.cfg.Clock.Now().UTC()
	b, err := json.Marshal(keptToken{JoinToken{ID: tokenID(token.Secret), Uses: uses, Created: now, Expires: now.Add(life)}, hashSecret(token.Secret)})
	if err != nil {
		return "", err
	}
	if _, err := t.Create(ctx, prefixJoin+tokenID(token.Secret), b); err != nil {
		return "", err
	}
	return token.String(), nil
}

// ListTokens lists the join tokens, by id, with those that ended within a day.
func (j *Joins) ListTokens(ctx context.Context) ([]JoinToken, error) {
	t, err := j.table(ctx)
	if err != nil {
		return nil, err
	}
	return j.sweep(ctx, t)
}

// RevokeToken ends a token, by its id. NotFound: there is none.
func (j *Joins) RevokeToken(ctx context.Context, id string) error {
	t, err := j.table(ctx)
	if err != nil {
		return err
	}
	found, err := j.changeToken(ctx, t, id, func(k *keptToken) error {
		if k.Revoked.IsZero() {
			k.Revoked = j.cfg.Clock.Now().UTC()
		}
		return nil
	})
	if err == nil && !found {
		return lode.Errorf(lode.NotFound, "there is no join token %s", id).WithHint("lode token ls")
	}
	return err
}

// sweep forgets the tokens that ended long ago, and returns the others.
func (j *Joins) sweep(ctx context.Context, t *bus.Table) ([]JoinToken, error) {
	entries, err := t.List(ctx, prefixJoin)
	if err != nil {
		return nil, err
	}
	var out []JoinToken
	now := j.cfg.Clock.Now()
	for _, e := range entries {
		var k keptToken
		if err := json.Unmarshal(e.Value, &k); err != nil {
			return nil, lode.Errorf(lode.Damaged, "the record of join token %s: %w", e.Key, err)
		}
		if end, ended := k.ended(now); ended && now.Sub(end) > keptFor {
			if err := t.Delete(ctx, e.Key, e.Rev); err != nil && lode.KindOf(err) != lode.Precondition {
				return nil, err
			}
			continue
		}
		out = append(out, k.JoinToken)
	}
	return out, nil
}

// checkToken says whether a secret opens the door now for the node of a mark.
func (j *Joins) checkToken(ctx context.Context, t *bus.Table, secret, mark string) error {
	e, ok, err := t.Get(ctx, prefixJoin+tokenID(secret))
	if err != nil {
		return err
	}
	var k keptToken
	if ok {
		if err := json.Unmarshal(e.Value, &k); err != nil {
			return lode.Errorf(lode.Damaged, "the record of a join token: %w", err)
		}
	}
	if !ok || subtle.ConstantTimeCompare([]byte(k.Hash), []byte(hashSecret(secret))) != 1 {
		return errNoToken()
	}
	return k.allows(j.cfg.Clock.Now(), mark)
}

func errNoToken() *lode.Error {
	return lode.Errorf(lode.Unauthenticated, "the cluster does not know this join token").
		WithHint("was it copied whole, and made less than a day ago? make a fresh one on a node of the cluster: lode token create --join")
}

// useToken counts a use. It may be called again for the same node.
func (j *Joins) useToken(ctx context.Context, t *bus.Table, secret string, use TokenUse) error {
	found, err := j.changeToken(ctx, t, tokenID(secret), func(k *keptToken) error {
		if err := k.allows(use.At, use.Mark); err != nil {
			return err
		}
		if !slices.ContainsFunc(k.Used, func(u TokenUse) bool { return u.Mark == use.Mark }) {
			k.Used = append(k.Used, use)
		}
		return nil
	})
	if err == nil && !found {
		return errNoToken()
	}
	return err
}

// changeToken changes a token's record until nobody came between.
func (j *Joins) changeToken(ctx context.Context, t *bus.Table, id string, f func(*keptToken) error) (bool, error) {
	for range swapTries {
		e, ok, err := t.Get(ctx, prefixJoin+id)
		if err != nil || !ok {
			return false, err
		}
		var k keptToken
		if err := json.Unmarshal(e.Value, &k); err != nil {
			return false, lode.Errorf(lode.Damaged, "the record of join token %s: %w", id, err)
		}
		if err := f(&k); err != nil {
			return true, err
		}
		b, err := json.Marshal(k)
		if err != nil {
			return true, err
		}
		if _, err = t.Update(ctx, e.Key, b, e.Rev); lode.KindOf(err) != lode.Precondition {
			return true, err
		}
	}
	return true, lode.Errorf(lode.Conflict, "join token %s is being used by others all the time", id).WithHint("try again")
}
