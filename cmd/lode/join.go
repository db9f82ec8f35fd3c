package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lode"
	"lode/api"
)

// joinTo is a cluster to join.
type joinTo struct {
	c     *cli
	host  string
	port  int    // of the gateway, or of the peers
	token string // as it was given, or ""
}

// probeFor bounds how long it may take to find out what listens at a port.
const probeFor = 3 * time.Second

// parseJoin reads --join and --token, which may also be in LODE_JOIN_TOKEN.
func (c *cli) parseJoin(to, token string) (*joinTo, error) {
	if to == "" {
		if token != "" {
			return nil, lode.Errorf(lode.Invalid, "--token is for joining, and --join is missing").WithHint("--join HOST[:PORT] names a node of the cluster")
		}
		return nil, nil
	}
	if strings.ContainsAny(to, "/ ") {
		return nil, lode.Errorf(lode.Invalid, "--join %q is no host", to).WithHint("want HOST or HOST:PORT, without http://")
	}
	j := &joinTo{c: c, host: strings.TrimSuffix(strings.TrimPrefix(to, "["), "]"), port: stdPort}
	if host, p, err := net.SplitHostPort(to); err == nil {
		if j.port, err = strconv.Atoi(p); err != nil || j.port < 1 || j.port > lastPort+1 {
			return nil, lode.Errorf(lode.Invalid, "--join %s: %q is no port", to, p)
		}
		j.host = host
	}
	if j.host == "" {
		return nil, lode.Errorf(lode.Invalid, "--join %q names no host", to)
	}
	var err error
	j.token, err = c.joinToken(token)
	return j, err
}

// joinToken is the token that was given on the command line, in a file or in
// the environment; "" if none was.
func (c *cli) joinToken(flag string) (string, error) {
	if file, ok := strings.CutPrefix(flag, "@"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", lode.Errorf(lode.Invalid, "--token: %w", err)
		}
		flag = string(b)
	} else if flag != "" {
		c.hint("the token on the command line can be read in the list of processes; LODE_JOIN_TOKEN or --token @FILE keeps it to yourself")
	}
	token := strings.TrimSpace(first(flag, c.getenv("LODE_JOIN_TOKEN")))
	if token != "" && !strings.HasPrefix(token, "lj1.") {
		e := lode.Errorf(lode.Invalid, "that is not a join token: it does not begin with lj1").WithHint("make one on a node of the cluster: lode token create --join")
		if strings.HasPrefix(token, "lt_") {
			e.Detail = "that is a token for the API, not one to join with"
		}
		return "", e
	}
	return token, nil
}

func (j *joinTo) address() string { return net.JoinHostPort(j.host, strconv.Itoa(j.port)) }

// resolve says where to join and with what. It is asked only when the node has
// to join: one whose folder belongs to the cluster already needs no token.
func (j *joinTo) resolve(ctx context.Context) (peer, token string, err error) {
	if j.token != "" {
		return j.peer(ctx), j.token, nil
	}
	if peer, token, err = j.ask(ctx); err == nil && peer == "" {
		peer = j.peer(ctx)
	}
	return peer, token, err
}

// peer is the address of the peer port. PORT is the gateway's, as in the node's
// URL, with the peers' one above; but whoever names that one means it.
func (j *joinTo) peer(ctx context.Context) string {
	port := j.port + 1
	if open, gateway := j.probe(ctx); open && !gateway {
		port = j.port
	}
	return net.JoinHostPort(j.host, strconv.Itoa(port))
}

// probe finds out whether something listens at the port, and whether it is a
// gateway.
func (j *joinTo) probe(ctx context.Context) (open, gateway bool) {
	ctx, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	var d net.Dialer
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, "tcp", j.address())
		open = err == nil
		return conn, err
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+j.address()+"/healthz", nil)
	if err != nil {
		return false, false
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return open, false
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 16))
	return true, resp.StatusCode == http.StatusOK && string(b) == "ok\n"
}

// ask gets a token from the node itself, if this user may: the node runs on
// this machine, or a context has a token for it. The node may say as well where
// its peer port is.
func (j *joinTo) ask(ctx context.Context) (peer, token string, err error) {
	missing := lode.Errorf(lode.Unauthenticated, "joining %s takes a join token", j.address()).
		WithHint("make one on a node of that cluster: lode token create --join; then add --token lj1..., or set LODE_JOIN_TOKEN")
	way, found, err := j.wayIn()
	if err != nil {
		return "", "", err
	}
	if !found {
		if onThisMachine(j.host) {
			missing.Detail = "joining " + j.address() + " takes a join token, and no node of yours was found there to ask for one"
		}
		return "", "", missing
	}
	client, err := api.New(way)
	if err != nil {
		return "", "", err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	k, err := client.CreateJoinToken(ctx, api.JoinSpec{Uses: 1, For: 10 * time.Minute})
	if err != nil {
		missing.Detail = "the node at " + j.address() + " gave no join token: " + lode.AsError(err).Error()
		return "", "", missing
	}
	l, err := client.Nodes(ctx)
	if err != nil {
		return "", k.Token, nil // then the port is guessed
	}
	for _, n := range l.Items {
		if n.Gateway != "" && j.names(n.Gateway) {
			peer = n.Peers
		}
	}
	return peer, k.Token, nil
}

// wayIn is how this user reaches the node at that address: one that it started
// here, the one of the default folder, or one of a context.
func (j *joinTo) wayIn() (way api.Config, found bool, err error) {
	if onThisMachine(j.host) {
		for _, n := range j.c.running() {
			if j.names(n.URL) {
				return api.Config{URL: n.URL, Token: readToken(n.TokenFile)}, true, nil
			}
		}
		if dir := j.c.dataDir(); (j.port == stdPort || j.port == stdPort+1) && isSocket(filepath.Join(dir, "lode.sock")) {
			return api.Config{URL: "unix://" + filepath.Join(dir, "lode.sock")}, true, nil
		}
	}
	cf, err := j.c.readConfig()
	if err != nil {
		return way, false, err
	}
	for _, saved := range cf.Contexts {
		for u := range strings.SplitSeq(saved.URL, ",") {
			if j.names(strings.TrimSpace(u)) && saved.Token != "" {
				return api.Config{URL: u, Token: saved.Token}, true, nil
			}
		}
	}
	return way, false, nil
}

// names reports whether url is the gateway of the node that is to be joined.
func (j *joinTo) names(url string) bool {
	_, hostport, ok := strings.Cut(url, "://")
	if !ok {
		hostport = url
	}
	host, p, err := net.SplitHostPort(strings.TrimSuffix(hostport, "/"))
	if err != nil {
		return false
	}
	port, err := strconv.Atoi(p)
	if err != nil || port != j.port && port+1 != j.port {
		return false
	}
	return host == j.host || loopbackName(host) && loopbackName(j.host)
}

func loopbackName(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
