package bus

import (
	"context"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"lode"
)

// options of a server that keeps one generation. Alone it has no port at all.
func (b *Bus) options(l Layout) *server.Options {
	o := &server.Options{
		ServerName: "lode",
		DontListen: true,
		JetStream:  true,
		StoreDir:   storeDir(b.cfg.Dir, l.Generation),
		SyncAlways: !b.cfg.unsynced, // an acknowledgement comes after fsync
		NoSigs:     true,
		MaxPayload: maxPayload,

		DisableJetStreamBanner: true,
		// In memory nothing is kept. The limit on disk is kept by space.go:
		// the server's own would refuse what frees space too.
		JetStreamMaxMemory: 16 << 20,
		JetStreamMaxStore:  1 << 60,
		// An answer that is late must not look like a lost connection.
		WriteDeadline: 30 * time.Second,
	}
	if len(l.Members) == 1 {
		return o
	}
	// A server with DontListen never connects to others, so its clients' port
	// is on loopback and lets nobody in but who comes in process.
	o.DontListen, o.Host, o.Port = false, "127.0.0.1", server.RANDOM_PORT
	o.CustomClientAuthentication = inProcessOnly{}
	o.ServerName = string(b.cfg.Node)
	o.Cluster = server.ClusterOpts{
		// The generations do not know each other.
		Name: "lode-" + l.Cluster + "-" + utoa(l.Generation),
		Host: "127.0.0.1", Port: server.RANDOM_PORT, PoolSize: -1, NoAdvertise: true,
		// Others are told of an address where nobody listens: every member
		// knows the way to every other one already (routes.go).
		Advertise: "127.0.0.1:1",
		Username:  "lode", Password: l.Secret,
	}
	o.Cluster.Compression.Mode = server.CompressionOff
	return o
}

// inProcessOnly refuses every client that has come over the network, be it
// from the same machine.
type inProcessOnly struct{}

var _ server.Authentication = inProcessOnly{}

// Check lets a client in or not.
func (inProcessOnly) Check(c server.ClientAuthentication) bool {
	a := c.RemoteAddress()
	return a == nil || a.Network() == "pipe"
}

// launch starts the server of a generation.
func (b *Bus) launch(ctx context.Context, l Layout) (*instance, error) {
	return b.launchWith(ctx, l, b.options(l))
}

func (b *Bus) launchWith(ctx context.Context, l Layout, o *server.Options) (*instance, error) {
	i := &instance{layout: l, options: o}
	if err := os.MkdirAll(i.options.StoreDir, 0o700); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "open bus: %w", err)
	}
	if len(l.Members) > 1 {
		var err error
		if i.routes, err = b.newRoutes(l); err != nil {
			return nil, err
		}
		for _, f := range i.routes.ways {
			i.options.Routes = append(i.options.Routes, &url.URL{Scheme: "nats-route", Host: f.Addr().String(), User: url.UserPassword("lode", l.Secret)})
		}
	}
	srv, err := server.NewServer(i.options)
	if err != nil {
		i.stop()
		return nil, lode.Errorf(lode.Internal, "open bus: %w", err)
	}
	i.srv = srv
	srv.SetLoggerV2(&logger{b.cfg.Logger, b.mender.failed}, false, false, false)
	srv.Start()
	wait := startWait
	if d, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(d))
	}
	if !srv.ReadyForConnections(wait) {
		i.stop()
		return nil, lode.Errorf(lode.Unavailable, "the bus in %s did not start within %s", b.cfg.Dir, wait.Round(time.Millisecond))
	}
	if i.routes != nil {
		i.routes.arrive(srv.ClusterAddr())
	}
	return i, nil
}

// stop ends a server and whatever is connected through it.
func (i *instance) stop() {
	i.clients.close()
	if i.srv != nil {
		i.srv.Shutdown()
		i.srv.WaitForShutdown()
	}
	if i.routes != nil {
		i.routes.close()
	}
}

// markFormed notes that the store has become part of its generation.
func (b *Bus) markFormed(l Layout) error {
	if err := writeFile(formedFile(b.cfg.Dir, l.Generation), nil); err != nil {
		return lode.Errorf(lode.Unavailable, "write to %s: %w", b.cfg.Dir, err)
	}
	return nil
}

// removeStores deletes the stores of the generations before one; a later one
// may be in the making.
func (b *Bus) removeStores(before uint64) {
	all, _ := filepath.Glob(filepath.Join(b.cfg.Dir, "store*"))
	for _, path := range all {
		generation := uint64(1)
		if name := strings.TrimSuffix(filepath.Base(path), ".formed"); name != "store" {
			var err error
			if generation, err = strconv.ParseUint(strings.TrimPrefix(name, "store-"), 10, 64); err != nil {
				continue
			}
		}
		if generation >= before {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			b.cfg.Logger.Warn("bus: an old store cannot be removed", "path", path, "err", err)
		}
	}
}

func tcp(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

// holds is what this server itself has of each stream; nil for no server.
func (i *instance) holds() map[string]held {
	if i == nil {
		return nil
	}
	info, err := i.srv.Jsz(&server.JSzOptions{Streams: true})
	if err != nil {
		return nil
	}
	out := make(map[string]held)
	for _, a := range info.AccountDetails {
		for _, s := range a.Streams {
			out[s.Name] = held{s.State.FirstSeq, s.State.LastSeq, s.State.Msgs}
		}
	}
	return out
}
