package member

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
)

func TestFound(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	dir := filepath.Join(t.TempDir(), "identity")
	id, err := Found(t.Context(), dir, "a", c.authority())
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{fileKey: 0o600, fileCert: 0o644, fileCA: 0o644} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	p := id.now()
	if got := p.leaf.NotAfter.Sub(p.leaf.NotBefore); got != nodeLife+backdated || p.ca.NotAfter.Sub(c.clock.Now()) != caLife {
		t.Errorf("life %v, the CA's until %v", got, p.ca.NotAfter)
	}
	if len(id.Cluster()) != 32 || p.leaf.URIs[0].String() != "lode://"+id.Cluster()+"/a" || p.leaf.DNSNames[0] != "a" || p.ca.URIs[0].String() != "lode://"+id.Cluster() {
		t.Errorf("names: %v %v %v", p.leaf.URIs, p.leaf.DNSNames, p.ca.URIs)
	}
	if len(p.leaf.ExtKeyUsage) != 2 || p.leaf.IsCA || !p.ca.IsCA || !p.ca.MaxPathLenZero {
		t.Errorf("uses: %v, CA %v %v", p.leaf.ExtKeyUsage, p.leaf.IsCA, p.ca.IsCA)
	}
	tab, err := c.bus.Table(t.Context(), tableCluster)
	if err != nil {
		t.Fatal(err)
	}
	e, ok, err := tab.Get(t.Context(), keyCA)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if key, err := x509.MarshalPKCS8PrivateKey(p.key); err != nil || strings.Contains(string(e.Value), string(key)) {
		t.Fatal("the record of the CA is not sealed", err)
	}
	again, err := Found(t.Context(), dir, "other", c.authority())
	if err != nil || again.Node() != "a" || again.Serial() != id.Serial() {
		t.Fatalf("a second start: %v, %v", again, err)
	}
	if err := c.authority().Check(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	err = newCluster(t).authority().Check(t.Context(), id)
	wantError(t, err, lode.NotFound, "the bus holds no CA")
	d := newCluster(t)
	d.first("z")
	wantError(t, d.authority().Check(t.Context(), id), lode.Conflict, "the bus is of another")
	d.seal = 7
	_, err = Found(t.Context(), t.TempDir(), "y", d.authority())
	if lode.KindOf(err) != lode.Damaged {
		t.Fatalf("another key for secrets: %v", err)
	}
}

// TestFoundTwice begins one cluster from several sides: there is one CA.
func TestFoundTwice(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var wg sync.WaitGroup
	ids := make([]*Identity, 6)
	for i := range ids {
		dir := t.TempDir()
		wg.Go(func() {
			var err error
			if ids[i], err = Found(t.Context(), dir, numbered("n", i+1), c.authority()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id == nil || id.CAHash() != ids[0].CAHash() {
			t.Fatal("two CAs")
		}
	}
}

// TestLoad reads whole folders, and none that is not.
func TestLoad(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	other := a.join("z")
	copyDir := func(t *testing.T) string {
		dir := t.TempDir()
		for _, f := range []string{fileCA, fileCert, fileKey} {
			b, err := os.ReadFile(filepath.Join(a.dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, f), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	id, ok, err := Load(copyDir(t), nil)
	if err != nil || !ok || id.Node() != "a" || id.Cluster() != a.id.Cluster() || id.Serial() != a.id.Serial() {
		t.Fatal(id, ok, err)
	}
	if _, ok, err := Load(t.TempDir(), nil); ok || err != nil {
		t.Fatal(ok, err)
	}
	take := func(file, from string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(from, file))
			if err != nil {
				t.Fatal(err)
			}
			os.WriteFile(filepath.Join(dir, file), b, 0o600)
		}
	}
	foreign := newCluster(t).first("a")
	for name, tt := range map[string]struct {
		do   func(*testing.T, string)
		kind lode.Kind
	}{
		"no key":           {func(_ *testing.T, d string) { os.Remove(filepath.Join(d, fileKey)) }, lode.Damaged},
		"no CA":            {func(_ *testing.T, d string) { os.Remove(filepath.Join(d, fileCA)) }, lode.Damaged},
		"open key":         {func(_ *testing.T, d string) { os.Chmod(filepath.Join(d, fileKey), 0o644) }, lode.Denied},
		"another's key":    {take(fileKey, other.dir), lode.Damaged},
		"another's CA":     {take(fileCA, foreign.dir), lode.Damaged},
		"another's cert":   {take(fileCert, other.dir), lode.Damaged},
		"CA as cert":       {func(t *testing.T, d string) { os.Rename(filepath.Join(d, fileCA), filepath.Join(d, fileCert)) }, lode.Damaged},
		"garbage for cert": {func(_ *testing.T, d string) { os.WriteFile(filepath.Join(d, fileCert), []byte("x"), 0o600) }, lode.Damaged},
		"garbage for key":  {func(_ *testing.T, d string) { os.WriteFile(filepath.Join(d, fileKey), []byte("x"), 0o600) }, lode.Damaged},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyDir(t)
			tt.do(t, dir)
			_, ok, err := Load(dir, nil)
			if ok {
				t.Fatal("loaded")
			}
			wantError(t, err, tt.kind)
		})
	}
}

// TestRenewal renews at two thirds of a certificate's life, waits for the bus
// where it is out, and uses the new certificate at the next handshake.
func TestRenewal(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	old := b.id.Serial()
	sealed := &gate{Sealer: c.seal}
	r := Renew(RenewalConfig{Identity: b.id, Authority: NewAuthority(c.bus, sealed, c.clock), Renewed: b.members.Renewed, Clock: c.clock, Logger: b.logger()})
	defer r.Close()
	asleep := func() {
		t.Helper()
		eventually(t, "the renewal sleeps", func() bool { c.clock.mu.Lock(); defer c.clock.mu.Unlock(); return c.clock.naps > 0 })
	}
	asleep()
	c.clock.add(nodeLife/3*2 - time.Hour)
	asleep()
	if b.id.Serial() != old {
		t.Fatal("renewed too early")
	}
	sealed.set(lode.Errorf(lode.Unavailable, "the bus has no quorum"))
	c.clock.add(2 * time.Hour)
	eventually(t, "a complaint", func() bool { return b.logs.has("cannot renew this node's certificate yet") })
	if got, err := b.talk(Link, "a"); err != nil || got != "a to b\n" || b.id.Serial() != old {
		t.Fatal("the old certificate is not used meanwhile", got, err)
	}
	sealed.set(nil)
	eventually(t, "renewed after the bus came back", func() bool { c.clock.add(time.Minute); time.Sleep(5 * time.Millisecond); return b.id.Serial() != old })
	if markIn(b.id.Serial()) != markIn(old) {
		t.Fatal("another mark after a renewal")
	}
	c.clock.add(nodeLife / 2) // the old one has expired; a's own, too
	if err := a.id.renew(t.Context(), c.authority()); err != nil {
		t.Fatal(err)
	}
	if got, err := b.talk(Link, "a"); err != nil || got != "a to b\n" {
		t.Fatal(got, err)
	}
	eventually(t, "the record has the new serial", func() bool { rec, _ := a.members.Get("b"); return rec.CertSerial == b.id.Serial() })
	onDisk, ok, err := Load(b.dir, c.clock)
	if err != nil || !ok || onDisk.Serial() != b.id.Serial() {
		t.Fatal(onDisk, ok, err)
	}
}

// gate is a Sealer that a test can shut.
type gate struct {
	Sealer
	mu  sync.Mutex
	err error
}

func (g *gate) set(err error) {
	g.mu.Lock()
	g.err = err
	g.mu.Unlock()
}

func (g *gate) Open(b []byte) ([]byte, error) {
	g.mu.Lock()
	err := g.err
	g.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return g.Sealer.Open(b)
}

// TestExpired refuses a certificate after its end: it says so itself, the
// other side says so, and a fresh token heals it in the same folder.
func TestExpired(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	c.clock.add(nodeLife)
	if b.id.Expired() {
		t.Fatal("expired too early")
	}
	c.clock.add(time.Second)
	if !b.id.Expired() {
		t.Fatal("not expired")
	}
	if err := a.id.renew(t.Context(), c.authority()); err != nil {
		t.Fatal(err)
	}
	_, err := b.talk(Link, "a")
	wantError(t, err, lode.Precondition, "the certificate of node b expired on 2026-05-30 12:00:00 UTC", "fresh token and the same folder")
	// It does not look at itself.
	_, err = handshake(t, b.id.ClientTLS("a", Link, nil), a.addr)
	if alertOf(err) != "expired certificate" {
		t.Fatalf("the other side's answer: %v", err)
	}
	wantError(t, dialError(err, "a", a.addr), lode.Precondition, "this node's certificate has expired")
	eventually(t, "counted", func() bool { return a.ln.Refused()[WhyExpired] == 1 })
	// The other way round.
	_, err = a.talk(Link, "b")
	wantError(t, err, lode.Precondition, "the certificate of node b is not valid")

	o := a.options("", a.token(1, time.Hour))
	o.Dir = b.dir
	j, err := Join(t.Context(), o)
	if err != nil || j.Node != "b" {
		t.Fatal(j, err)
	}
	b2 := c.start(b.dir, j.Identity)
	if got, err := b2.talk(Link, "a"); err != nil || got != "a to b\n" {
		t.Fatal(got, err)
	}
}

// handshake connects, shakes hands and reads the other side's greeting.
func handshake(t *testing.T, cfg *tls.Config, addr string) (*tls.Conn, error) {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	conn := tls.Client(raw, cfg)
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	return conn, readGreeting(conn)
}

// TestSealedByAnother cannot renew, and says why.
func TestSealedByAnother(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	err := a.id.renew(t.Context(), NewAuthority(c.bus, seal(1), c.clock))
	if lode.KindOf(err) != lode.Damaged {
		t.Fatal(err)
	}
	err = a.id.renew(t.Context(), NewAuthority(noBus{}, c.seal, c.clock))
	wantError(t, err, lode.Unavailable)
	d := newCluster(t)
	d.first("a")
	if err := a.id.renew(t.Context(), d.authority()); lode.KindOf(err) != lode.Conflict {
		t.Fatal(err)
	}
}

// TestCAExpires ends with the CA's own end, in words, and no certificate
// outlives it.
func TestCAExpires(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	c.clock.add(caLife - 24*time.Hour)
	if err := a.id.renew(t.Context(), c.authority()); err != nil {
		t.Fatal(err)
	}
	if !a.id.Expires().Equal(a.id.now().ca.NotAfter) {
		t.Fatal("the certificate outlives its CA")
	}
	c.clock.add(24 * time.Hour)
	wantError(t, a.id.renew(t.Context(), c.authority()), lode.Precondition, "expired on")
}

func TestValid(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	if err := a.id.Valid(); err != nil {
		t.Fatal(err)
	}
	c.clock.add(-25 * time.Hour)
	wantError(t, a.id.Valid(), lode.Precondition, "begins at 2026-02-28 12:00:00 UTC", "clock")
}

func TestRenewIn(t *testing.T) {
	from := time.Unix(0, 0)
	for after, want := range map[time.Duration]time.Duration{0: 60 * time.Hour, 60 * time.Hour: 0, 80 * time.Hour: -20 * time.Hour} {
		if got := renewIn(from, from.Add(90*time.Hour), from.Add(after)); got != want {
			t.Errorf("%v: %v", after, got)
		}
	}
}

// TestRouteTLS lets members of the bus meet, whoever they are, and nobody
// else.
func TestRouteTLS(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	meet := func(server, client *tls.Config) (error, error) {
		s, k := net.Pipe()
		defer s.Close()
		defer k.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		done := make(chan error, 1)
		go func() {
			conn := tls.Server(s, server)
			err := conn.HandshakeContext(ctx)
			if err == nil {
				_, err = conn.Write([]byte{0})
			} else {
				s.Close()
			}
			done <- err
		}()
		conn := tls.Client(k, client)
		err := conn.HandshakeContext(ctx)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		k.Close()
		return <-done, err
	}
	if s, k := meet(a.id.RouteTLS(a.members.Check), b.id.RouteTLS(b.members.Check)); s != nil || k != nil {
		t.Fatal(s, k)
	}
	foreign := newCluster(t).first("b")
	if s, k := meet(a.id.RouteTLS(nil), foreign.id.RouteTLS(nil)); s == nil || k == nil {
		t.Fatal("another cluster's node was let in", s, k)
	}
	if s, k := meet(a.id.RouteTLS(nil), &tls.Config{InsecureSkipVerify: true}); s == nil || k == nil {
		t.Fatal("a client without a certificate was let in", s, k)
	}
	if err := a.members.Remove(t.Context(), "b", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a knows", func() bool { return !a.members.Allowed("b", b.id.Serial()) })
	if s, k := meet(a.id.RouteTLS(a.members.Check), b.id.RouteTLS(nil)); lode.KindOf(s) != lode.Gone || k == nil {
		t.Fatal("a removed node was let in", s, k)
	}
}
