package api

import (
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"lode"
)

// tokenRequest is the body of tokens.create; For is in seconds on the wire.
type tokenRequest struct {
	Role      Role           `json:"role"`
	Namespace lode.Namespace `json:"namespace,omitempty"`
	Seconds   int64          `json:"for_seconds,omitempty"`
	Note      string         `json:"note,omitempty"`
	AWS       bool           `json:"aws,omitempty"`
}

func safeRoutes() []route {
	return []route{
		{id: "secrets.list", method: "GET", path: "/v1/secrets", role: RoleDeploy, summary: "Names of secrets; values never come out", query: paging, reply: List[Secret]{}, serve: listSecrets},
		{id: "secrets.set", method: "PUT", path: "/v1/secrets/{name}", role: RoleDeploy, write: true, summary: "Set a secret; the body is the value, at most 64 KiB", bodyRaw: "application/octet-stream", serve: setSecret},
		{id: "secrets.remove", method: "DELETE", path: "/v1/secrets/{name}", role: RoleDeploy, write: true, summary: "Remove a secret", serve: removeSecret},
		{id: "tokens.list", method: "GET", path: "/v1/tokens", role: RoleAdmin, summary: "List tokens", query: paging, reply: List[Token]{}, serve: listTokens},
		{id: "tokens.create", method: "POST", path: "/v1/tokens", role: RoleAdmin, write: true, summary: "Make a token; it is told once", body: tokenRequest{}, reply: NewToken{}, serve: createToken},
		{id: "tokens.revoke", method: "DELETE", path: "/v1/tokens/{id}", role: RoleAdmin, write: true, summary: "Revoke a token", serve: revokeToken},
		{id: "whoami", method: "GET", path: "/v1/whoami", role: RoleRead, summary: "What this token may do", reply: Grant{}, serve: whoami},
		{id: "audit.list", method: "GET", path: "/v1/audit", role: RoleAdmin, summary: "Who changed what, newest first", query: paging, reply: List[AuditEntry]{}, serve: listAudit},
	}
}

func listSecrets(c *call) error {
	if c.b.Secrets == nil {
		return missing("secrets")
	}
	return listing(c, func(p Page) (List[Secret], error) { return c.b.Secrets.ListSecrets(c.r.Context(), c.ns, p) })
}

var secretName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// CheckSecretName checks the name of a secret: that of an environment
// variable, since that is how a function sees it.
func CheckSecretName(s string) error {
	if !secretName.MatchString(s) {
		return lode.Errorf(lode.Invalid, "%q is not the name of a secret", s).WithHint("want letters, digits and underscores, as in STRIPE_KEY")
	}
	return nil
}

// withSecret runs do with the noun and the name in the path.
func (c *call) withSecret(do func(Secrets, string) error) error {
	if c.b.Secrets == nil {
		return missing("secrets")
	}
	name := c.r.PathValue("name")
	if err := CheckSecretName(name); err != nil {
		return err
	}
	if err := do(c.b.Secrets, name); err != nil {
		return err
	}
	return c.noContent()
}

func setSecret(c *call) error {
	return c.withSecret(func(b Secrets, name string) error {
		v, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxSecret))
		if err != nil {
			return bodyError(err)
		}
		if len(v) == 0 {
			return lode.Errorf(lode.Invalid, "the value of %s is empty", name)
		}
		return b.SetSecret(c.r.Context(), c.ns, name, v)
	})
}

func removeSecret(c *call) error {
	return c.withSecret(func(b Secrets, name string) error { return b.RemoveSecret(c.r.Context(), c.ns, name) })
}

// listTokens shows an admin of one namespace the tokens of that one. Join
// tokens, which are few and of no namespace, are behind the last page.
func listTokens(c *call) error {
	if c.b.Tokens == nil {
		return missing("tokens")
	}
	return listing(c, func(p Page) (List[Token], error) {
		l, err := c.b.Tokens.ListTokens(c.r.Context(), p)
		if err == nil && c.grant.Namespace == "" && l.Next == "" && c.b.Nodes != nil {
			join, err := c.b.Nodes.ListJoinTokens(c.r.Context())
			l.Items = slices.Concat(l.Items, join)
			return l, err
		}
		if c.grant.Namespace == "" {
			return l, err
		}
		var mine []Token
		for _, t := range l.Items {
			if t.Namespace == c.grant.Namespace {
				mine = append(mine, t)
			}
		}
		l.Items = mine
		return l, err
	})
}

func createToken(c *call) error {
	if c.b.Tokens == nil {
		return missing("tokens")
	}
	var q tokenRequest
	if err := c.read(&q); err != nil {
		return err
	}
	if rank[q.Role] == 0 {
		return lode.Errorf(lode.Invalid, "there is no role %q", q.Role).WithHint("roles: admin, deploy, call, read")
	}
	if q.Seconds < 0 || q.Seconds > int64(10*365*24*time.Hour/time.Second) {
		return lode.Errorf(lode.Invalid, "for_seconds is %d; want 0 (until revoked) to ten years", q.Seconds)
	}
	if q.Namespace == "" {
		q.Namespace = c.grant.Namespace
	}
	if c.grant.Namespace != "" && q.Namespace != c.grant.Namespace {
		return lode.Errorf(lode.Denied, "an admin of namespace %s makes no tokens for others", c.grant.Namespace)
	}
	if q.Namespace != "" {
		if _, err := lode.ParseName(string(q.Namespace)); err != nil {
			return err
		}
	}
	v, err := c.b.Tokens.CreateToken(c.r.Context(), TokenSpec{Role: q.Role, Namespace: q.Namespace, For: time.Duration(q.Seconds) * time.Second, Note: q.Note, AWS: q.AWS})
	if err != nil {
		return err
	}
	c.w.Header().Set("Cache-Control", "no-store")
	return c.json(v, "")
}

func revokeToken(c *call) error {
	if c.b.Tokens == nil {
		return missing("tokens")
	}
	id := c.r.PathValue("id")
	if strings.HasPrefix(id, JoinPrefix) {
		return c.revokeJoin(id)
	}
	if c.grant.Namespace != "" {
		if err := c.ownToken(id); err != nil {
			return err
		}
	}
	if err := c.b.Tokens.RevokeToken(c.r.Context(), id); err != nil {
		return err
	}
	return c.noContent()
}

// ownToken is nil if the token is of the caller's own namespace.
func (c *call) ownToken(id string) error {
	for p := (Page{Limit: maxLimit}); ; {
		l, err := c.b.Tokens.ListTokens(c.r.Context(), p)
		if err != nil {
			return err
		}
		for _, t := range l.Items {
			if t.ID == id && t.Namespace == c.grant.Namespace {
				return nil
			}
		}
		if p.After = l.Next; p.After == "" {
			return lode.Errorf(lode.NotFound, "namespace %s has no token %s", c.grant.Namespace, id)
		}
	}
}

func whoami(c *call) error { return c.json(c.grant, "") }

func listAudit(c *call) error {
	if c.b.Audit == nil {
		return missing("audit log")
	}
	if c.grant.Namespace != "" {
		return lode.Errorf(lode.Denied, "the audit log is for admins of all namespaces")
	}
	return listing(c, func(p Page) (List[AuditEntry], error) { return c.b.Audit.ListAudit(c.r.Context(), p) })
}
