//go:build linux

package cut

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"lode/api"
)

// TestStrangers: a cluster with addresses lets nobody in who has no business
// there, at no port, and says and counts it.
func TestStrangers(t *testing.T) {
	t.Parallel() // they wait more than they work
	c := newCluster(t, "a", "b", "x", "y")
	a := c.up("a")
	c.deploy("a", 1)
	ctx := t.Context()

	t.Run("doors", func(t *testing.T) {
		stranger := &http.Client{Transport: a.http.Transport.(*bearer).inner}
		for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 401, "/v1/nodes": 401, "/v1/secrets": 401, "/fn/web/version": 401, "/queues/work": 401} {
			method := http.MethodGet
			if path == "/queues/work" {
				method = http.MethodPost
			}
			for _, token := range []string{"", "Bearer lt_wrong"} {
				req, _ := http.NewRequest(method, a.url(path), nil)
				if token != "" {
					req.Header.Set("Authorization", token)
				}
				resp, err := stranger.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != want {
					t.Errorf("%s with %q: %d, want %d", path, token, resp.StatusCode, want)
				}
			}
		}
	})

	// Joins that fail say why, leave nothing behind, and spend nothing.
	x := c.up("x") // another cluster, of one
	foreign := c.token("x")
	good := c.token("a")
	cluster, _, _ := strings.Cut(strings.TrimPrefix(good, "lj1."), ".")
	expiring, err := a.api.CreateJoinToken(ctx, api.JoinSpec{For: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	revoked, err := a.api.CreateJoinToken(ctx, api.JoinSpec{})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.api.RevokeToken(ctx, revoked.ID); err != nil {
		t.Fatal(err)
	}
	c.join("b", good)
	time.Sleep(time.Until(expiring.Expires) + time.Second)
	for _, try := range []struct{ name, token, says string }{
		{"of another cluster", foreign, "not of the cluster"},
		{"used", good, "used"},
		{"expired", expiring.Token, "expired"},
		{"revoked", revoked.Token, "revoked"},
		{"guessed", "lj1." + cluster + "." + strings.Repeat("a", 32), "token"},
	} {
		t.Run("token "+strings.ReplaceAll(try.name, " ", "_"), func(t *testing.T) {
			p := c.begin("y", "--join", c.net.addr["a"], "--token", try.token)
			select {
			case <-p.done:
			case <-time.After(patience):
				t.Fatalf("it does not end: %s", p.out)
			}
			out := p.out.String()
			if p.cmd.ProcessState.ExitCode() == 0 || !strings.Contains(out, try.says) || !strings.Contains(out, "hint") {
				t.Errorf("code %d: %s", p.cmd.ProcessState.ExitCode(), out)
			}
			t.Log(lastLines(out, 3))
		})
	}
	delete(c.nodes, "y")
	if l, err := a.api.Nodes(ctx); err != nil || len(l.Items) != 2 {
		t.Errorf("the cluster has %+v %v", l.Items, err)
	}
	if n := a.metric("lode_peer_port_refused_total"); n < 4 {
		t.Errorf("%v refusals were counted, of 4 joins with a bad token", n)
	}

	c.grow3("x")
	for _, port := range []struct{ addr, what string }{{a.peers(), "peer"}, {c.net.addr["a"] + ":5635", "bus"}} {
		for what, knock := range c.knocks() {
			t.Run(port.what+" port "+strings.ReplaceAll(what, " ", "_"), func(t *testing.T) {
				before := a.metric("lode_peer_port_refused_total")
				ctx, cancel := context.WithTimeout(ctx, patience)
				defer cancel()
				conn, err := c.net.dial(ctx, "y", port.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(patience))
				if got := knock(conn); got {
					t.Error("the port talks to a stranger")
				}
				if port.what == "peer" {
					waitFor(t, "the refusal to be counted", func() bool { return a.metric("lode_peer_port_refused_total") > before })
				}
			})
		}
	}
	if out := a.out.String(); !strings.Contains(out, "refused a connection to the peer port") || !strings.Contains(out, "a connection for the bus was refused") {
		t.Errorf("the log says nothing of refusals:\n%s", out)
	}
	x.kill()
	delete(c.nodes, "x")
	c.healed()
	if err := a.api.SetSecret(ctx, "STILL", []byte("x")); err != nil {
		t.Error(err)
	}
}

// grow3 makes a third member of the node of another cluster: a bus of members
// has a port for them.
func (c *cluster) grow3(name string) {
	c.t.Helper()
	c.nodes[name].kill()
	removeFolder(c.data(name))
	c.join(name, c.token("a"))
	waitFor(c.t, "three members", func() bool {
		l, err := c.nodes["a"].api.Nodes(c.t.Context())
		return err == nil && l.Cluster.Answering == 3
	})
}

func (p *process) peers() string { return p.c.net.addr[p.name] + ":5634" }

// knocks are ways to come to a port without a right to. Each reports whether it
// was let in.
func (c *cluster) knocks() map[string]func(net.Conn) bool {
	say := func(text string) func(net.Conn) bool {
		return func(conn net.Conn) bool {
			io.WriteString(conn, text)
			b := make([]byte, 512) // whoever speaks HTTP is told in HTTP that this is no door
			n, _ := conn.Read(b)
			return n > 16 && !strings.HasPrefix(string(b[:n]), "HTTP/1.1 400 ")
		}
	}
	shake := func(alpn string, certs ...tls.Certificate) func(net.Conn) bool {
		return func(raw net.Conn) bool {
			cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}, MinVersion: tls.VersionTLS13}
			if len(certs) > 0 { // shown whatever CA the other side asks for
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
			}
			conn := tls.Client(raw, cfg)
			if conn.Handshake() != nil {
				return false
			}
			conn.Write([]byte("let me in"))
			n, _ := conn.Read(make([]byte, 1)) // with TLS 1.3 the other side's refusal comes now
			return n > 0
		}
	}
	other := strangerCertificate(c.t, "b")
	return map[string]func(net.Conn) bool{
		"garbage":                      say("\x00\x01\x02\x03 what is this\r\n\r\n"),
		"plain HTTP":                   say("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
		"plain NATS":                   say("CONNECT {}\r\nPING\r\n"),
		"no certificate":               shake("lode-link/1"),
		"a certificate of another CA":  shake("lode-link/1", other),
		"the same for the bus":         shake("lode-bus/1", other),
		"a protocol that there is not": shake("h2", other),
	}
}

// strangerCertificate is of a CA of its own, and names a node of the cluster.
func strangerCertificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
