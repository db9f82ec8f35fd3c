package bus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

// Remote is a cluster of the user's own that keeps the bus. Everything gets
// three copies there if it has three servers, else one. It may hold other
// things too, but only one cluster of Lode in an account: a second one is
// refused by the id that the first has left in table "layout".
type Remote struct {
	URL   string // nats://host:port, several with commas between; tls:// for TLS
	Creds string // path of a credentials file; "": none
	// Join is the Layout of the cluster that this node joined; it is read
	// where the folder has none.
	Join *Layout
}

// clusterKey holds the cluster id in the table of the layout.
const clusterKey = "cluster"

func (b *Bus) startRemote(ctx context.Context) error {
	opts := append(commonOptions(), nats.Name(string(b.cfg.Node)), nats.ReconnectHandler(b.connected), nats.ConnectHandler(b.connected),
		nats.ReconnectWait(200*time.Millisecond))
	if b.cfg.Remote.Creds != "" {
		opts = append(opts, nats.UserCredentials(b.cfg.Remote.Creds))
	}
	var err error
	if b.nc, err = nats.Connect(b.cfg.Remote.URL, opts...); err != nil {
		return lode.Errorf(lode.Invalid, "connect to the bus at %s: %w", b.cfg.Remote.URL, err).WithHint("check --nats and --creds")
	}
	if b.js, err = jetstream.New(b.nc, jetstream.WithDefaultTimeout(callWait)); err != nil {
		return lode.Errorf(lode.Internal, "open bus: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	for !b.nc.IsConnected() {
		select {
		case <-time.After(redial):
		case <-ctx.Done():
			return lode.Errorf(lode.Unavailable, "the bus at %s cannot be reached: %v", b.cfg.Remote.URL, b.nc.LastError()).
				WithHint("check --nats and --creds, and that the servers are up")
		}
	}
	return b.enter(ctx)
}

// enter makes or finds the table of the layout, learns by it how many copies
// there are, and checks whose it is.
func (b *Bus) enter(ctx context.Context) error {
	cfg := tableConfig(layoutTable)
	for {
		err := b.tryEnter(ctx, cfg)
		if err == nil || !passing(err) || ctx.Err() != nil {
			return wrap(err, "open the bus at %s", b.cfg.Remote.URL)
		}
		select {
		case <-time.After(lastPause):
		case <-ctx.Done():
		}
	}
}

func (b *Bus) tryEnter(ctx context.Context, cfg jetstream.StreamConfig) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	st, err := b.js.Stream(ctx, cfg.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		cfg.Replicas = 3
		if st, err = b.js.CreateStream(ctx, cfg); tooFew(err) {
			cfg.Replicas = 1
			st, err = b.js.CreateStream(ctx, cfg)
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			st, err = b.js.Stream(ctx, cfg.Name)
		}
	}
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.copies = cmp.Or(st.CachedInfo().Config.Replicas, 1)
	id := b.layout.Cluster
	b.mu.Unlock()
	t, err := b.Table(ctx, layoutTable)
	if err != nil {
		return err
	}
	if _, err = t.Create(ctx, clusterKey, []byte(id)); lode.KindOf(err) != lode.Conflict {
		return err
	}
	e, _, err := t.Get(ctx, clusterKey)
	if err != nil {
		return err
	}
	if there := string(e.Value); there != id {
		return lode.Errorf(lode.Conflict, "the bus at %s belongs to another cluster of Lode (%.8s; this node is of %.8s)", b.cfg.Remote.URL, there, id).
			WithHint("give each cluster an account of its own there, or join the cluster that it belongs to")
	}
	return nil
}

// tooFew tells the refusals of a server that has not enough others for three
// copies.
func tooFew(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == codeNoPeers || api.ErrorCode == codeNotClustered || strings.Contains(api.Description, "no suitable peers"))
}

const (
	codeNoPeers      = 10005
	codeNotClustered = 10074
)

// remoteHealth asks the leader of the layout's stream.
func (b *Bus) remoteHealth() Health {
	ctx, cancel := context.WithTimeout(b.ctx, askWait)
	defer cancel()
	b.mu.Lock()
	h := Health{Copies: b.copies, Connected: b.nc.IsConnected()}
	b.mu.Unlock()
	m, err := b.nc.RequestWithContext(ctx, streamPath+"INFO."+tableStream(layoutTable), nil)
	var a struct {
		Error   *jetstream.APIError    `json:"error"`
		Cluster *jetstream.ClusterInfo `json:"cluster"`
	}
	if err == nil {
		err = json.Unmarshal(m.Data, &a)
	}
	if err != nil || a.Error != nil {
		h.Detail = "the cluster at " + b.cfg.Remote.URL + " does not answer"
		return h
	}
	if a.Cluster == nil || a.Cluster.Leader == "" {
		h.Quorum = h.Copies == 1
		return h
	}
	up := 1
	h.Members = append(h.Members, MemberHealth{Node: lode.NodeID(a.Cluster.Leader), Up: true, Leader: true})
	for _, p := range a.Cluster.Replicas {
		h.Members = append(h.Members, MemberHealth{Node: lode.NodeID(p.Name), Up: !p.Offline, Lag: p.Lag})
		if !p.Offline {
			up++
		}
	}
	h.Quorum = up > h.Copies/2
	h.Survives = max(0, up-h.Copies/2-1)
	return h
}

// maxAppend is the most bytes of entries in one message: a cluster outside may
// take less than ours.
func (b *Bus) maxAppend() int {
	if b.cfg.Remote == nil {
		return MaxAppend
	}
	return min(MaxAppend, max(64<<10, int(b.nc.MaxPayload())-64<<10))
}
