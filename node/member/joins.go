package member

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"lode"
	"lode/bus"
)

// Times of the join protocol.
const (
	joinFor  = 30 * time.Second // for all of it
	maxSkew  = 2 * time.Minute  // between the two clocks
	maxJoins = 16               // at a time
)

// JoinsConfig says how this node lets others join. Identity, Authority,
// Members, Tables and Share are needed.
type JoinsConfig struct {
	Identity  *Identity
	Authority *Authority
	Members   *Members
	Tables    Tables
	// Share returns what a new node needs besides its certificate.
	Share   func(ctx context.Context) (Shared, error)
	Version string // of this program
	// Tries is how many requests one address has at once; one more comes every
	// two seconds. 0: 30.
	Tries int
	// Request is how long a joiner may take to send its request; 0 = 10 s.
	Request time.Duration
	Clock   Clock        // nil: the machine's
	Logger  *slog.Logger // nil: slog.Default
}

// Joins makes join tokens and lets nodes join by them. All methods may be
// called at the same time, here and on other nodes.
//
// A join is: check the token, clocks, versions and addresses; write the node's
// record (state joining) and so take the name; count the token's use; answer.
// Of two that want one name one comes second at the record; of two that want
// the last use of a token one comes second at the token, and its record is
// taken back. A joiner that lost the answer asks again with the same key, and
// gets the same name.
type Joins struct {
	cfg   JoinsConfig
	rate  *rate
	slots chan struct{}
}

// NewJoins makes Joins.
func NewJoins(cfg JoinsConfig) *Joins {
	cfg.Clock, cfg.Logger, cfg.Tries = orWall(cfg.Clock), cmp.Or(cfg.Logger, slog.Default()), cmp.Or(cfg.Tries, 30)
	cfg.Request = cmp.Or(cfg.Request, 10*time.Second)
	return &Joins{cfg: cfg, rate: newRate(cfg.Tries, 2*time.Second), slots: make(chan struct{}, maxJoins)}
}

func (j *Joins) table(ctx context.Context) (*bus.Table, error) {
	return j.cfg.Tables.Table(ctx, tableCluster)
}

// serve has one joiner. The error that it returns has been told to the joiner.
func (j *Joins) serve(ctx context.Context, conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, joinFor)
	defer cancel()
	conn.SetDeadline(time.Now().Add(j.cfg.Request))
	q, csr, err := readRequest(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = lode.Errorf(lode.Deadline, "the request to join did not arrive in time: %w", err).WithHint("try again; if it stays so, look at the network between the machines")
	}
	conn.SetDeadline(time.Now().Add(joinFor))
	var a *Answer
	if err == nil {
		a, err = j.admit(ctx, q, csr, hostOf(conn))
	}
	if err == nil {
		if err = writeMessage(conn, msgAnswer, a); err != nil {
			j.cfg.Logger.Warn("a node joined, and its answer was lost; it can ask again", "node", a.Node, "error", err)
			return nil
		}
		return finish(conn)
	}
	e := lode.AsError(err)
	if e.Kind == lode.Internal { // what happened inside is nothing for strangers
		e = lode.Errorf(lode.Internal, "node %s could not handle the request to join", j.cfg.Identity.Node()).WithHint("see its log")
	}
	if writeMessage(conn, msgProblem, e) == nil {
		finish(conn)
	}
	return err
}

// finish ends a conversation so that the last message arrives.
func finish(conn *tls.Conn) error {
	if err := conn.CloseWrite(); err != nil {
		return nil
	}
	conn.SetReadDeadline(time.Now().Add(time.Second))
	io.CopyN(io.Discard, conn, maxRequest)
	return nil
}

// admit holds the bounds of rate and number.
func (j *Joins) admit(ctx context.Context, q *Request, csr *x509.CertificateRequest, from string) (*Answer, error) {
	if wait := j.rate.take(from, j.cfg.Clock.Now()); wait > 0 {
		e := lode.Errorf(lode.Overloaded, "too many requests to join from %s", from).WithHint("try again in %d s", int(wait/time.Second)+1)
		e.RetryAfter = wait
		return nil, e
	}
	select {
	case j.slots <- struct{}{}:
		defer func() { <-j.slots }()
	default:
		e := lode.Errorf(lode.Overloaded, "%d nodes are joining through node %s", maxJoins, j.cfg.Identity.Node()).WithHint("try again in a moment, or join through another node")
		e.RetryAfter = time.Second
		return nil, e
	}
	return j.handle(ctx, q, csr, from)
}

// handle lets one node join, or says why not.
func (j *Joins) handle(ctx context.Context, q *Request, csr *x509.CertificateRequest, from string) (*Answer, error) {
	raw, err := markOf(csr.PublicKey)
	if err != nil {
		return nil, err
	}
	mark := hex.EncodeToString(raw)
	t, err := j.table(ctx)
	if err != nil {
		return nil, err
	}
	if err := j.checkToken(ctx, t, q.Secret, mark); err != nil {
		return nil, err
	}
	r, err := j.fit(q, from)
	if err != nil {
		return nil, err
	}
	shared, err := j.cfg.Share(ctx)
	if err != nil {
		return nil, err
	}
	c := &claim{j: j, record: r, mark: mark, csr: csr, explicit: q.Name != ""}
	if err := c.take(ctx, wanted(q)); err != nil {
		return nil, err
	}
	use := TokenUse{Node: c.record.Name, From: from, At: j.cfg.Clock.Now().UTC(), Mark: mark}
	if err := j.useToken(ctx, t, q.Secret, use); err != nil {
		c.undo(ctx)
		return nil, err
	}
	nodes, err := c.others(ctx)
	if err != nil {
		return nil, err
	}
	j.cfg.Logger.Info("a node joined the cluster", "node", c.record.Name, "from", from, "token", tokenID(q.Secret))
	return &Answer{Version: joinVersion, Cluster: j.cfg.Identity.Cluster(), Node: c.record.Name, Cert: c.cert, CA: j.cfg.Identity.now().ca.Raw,
		Shared: shared, Nodes: nodes}, nil
}

// wanted is the name that a joiner wants most.
func wanted(q *Request) lode.NodeID {
	if q.Name != "" {
		return lode.NodeID(q.Name)
	}
	return lode.NodeIDFromHost(q.Host)
}

// fit checks whether a joiner that has a token fits this cluster, and makes
// its record.
func (j *Joins) fit(q *Request, from string) (Record, error) {
	now := j.cfg.Clock.Now()
	self := j.cfg.Identity.Node()
	if d := now.Sub(q.Clock).Abs(); d > maxSkew {
		return Record{}, lode.Errorf(lode.Precondition, "the clocks differ by %s: %s on node %s, %s on the machine that wants to join", d.Round(time.Second), stamp(now), self, stamp(q.Clock)).
			WithHint("set the clocks (timedatectl set-ntp true), then join again; the token has not been used")
	}
	if err := versionsFit(j.cfg.Version, q.Node.Version, self); err != nil {
		return Record{}, err
	}
	r := q.Node
	r.Name = wanted(q)
	r.Incarnation, r.State, r.Joined, r.Started, r.CertSerial = "", Joining, now.UTC(), time.Time{}, ""
	for _, a := range []*string{&r.Gateway, &r.Peers, &r.Bus} {
		*a = fillHost(*a, from)
	}
	if err := r.check(); err != nil {
		return Record{}, err
	}
	if r.Peers == "" {
		return Record{}, lode.Errorf(lode.Invalid, "the joiner does not say where it listens for other nodes")
	}
	return r, j.addressesFit(&r)
}

// addressesFit refuses joins after which some nodes could not reach others.
func (j *Joins) addressesFit(r *Record) error {
	self, ok := j.cfg.Members.Get(j.cfg.Identity.Node())
	if !ok || self.State == Joining {
		e := lode.Errorf(lode.Unavailable, "node %s is only starting", j.cfg.Identity.Node()).WithHint("try again in a moment")
		e.RetryAfter = time.Second
		return e
	}
	if loopback(self.Peers) && !loopback(r.Peers) {
		return lode.Errorf(lode.Precondition, "node %s listens on %s only, which other machines cannot reach", self.Name, hostPart(self.Peers)).
			WithHint("restart node %s with --bind ADDR, an address that %s can reach; the token has not been used", self.Name, hostPart(r.Peers))
	}
	for _, n := range j.cfg.Members.List() {
		if loopback(r.Peers) && !loopback(n.Peers) {
			return lode.Errorf(lode.Precondition, "the node that wants to join listens on %s only, where node %s at %s cannot reach it", hostPart(r.Peers), n.Name, hostPart(n.Peers)).
				WithHint("start it with --bind ADDR, an address of its own; the token has not been used")
		}
	}
	return nil
}

// fillHost puts the address that a joiner was seen at where it says only "all
// of mine".
func fillHost(addr, from string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host != "" && !net.ParseIP(host).IsUnspecified() {
		return addr
	}
	return net.JoinHostPort(from, port)
}

func hostPart(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// versionsFit takes neighbouring releases, which a rolling upgrade mixes.
// Versions that are no release are taken as they come.
func versionsFit(mine, its string, self lode.NodeID) error {
	a, b, ok := release(mine)
	c, d, ok2 := release(its)
	if !ok || !ok2 || a == c && max(b, d)-min(b, d) <= 1 {
		return nil
	}
	return lode.Errorf(lode.Precondition, "node %s runs lode %s, and the machine that wants to join runs %s: nodes of a cluster are at most one release apart", self, mine, its).
		WithHint("upgrade the older one; the token has not been used")
}

// release reads the first two numbers of a version; false if it has none.
func release(v string) (major, minor int, ok bool) {
	parts := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	major, err := strconv.Atoi(parts[0])
	if err != nil {
		return 0, 0, false
	}
	minor, err = strconv.Atoi(parts[1])
	return major, minor, err == nil && major >= 0 && minor >= 0
}
