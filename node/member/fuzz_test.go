package member

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"

	"lode"
)

func FuzzParseToken(f *testing.F) {
	whole := "lj1." + strings.Repeat("0a", 32) + "." + strings.Repeat("a", 32)
	for _, s := range []string{whole, "", "lj1", "lj1..", whole[1:], whole + "a", strings.ToUpper(whole), "lt_a_b", " " + whole + "\n", "lj1." + strings.Repeat("0a", 32) + "." + strings.Repeat("1", 32)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if lode.KindOf(err) != lode.Invalid || tok != (Token{}) {
				t.Fatal(tok, err)
			}
			return
		}
		if again, err := ParseToken(tok.String()); err != nil || again != tok || tok.String() != strings.TrimSpace(s) {
			t.Fatalf("%q: %+v, %+v, %v", s, tok, again, err)
		}
	})
}

// seedRequest is a whole request to join.
func seedRequest(f *testing.F) []byte {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	csr, err := x509.CreateCertificateRequest(nil, &x509.CertificateRequest{}, key)
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	q := Request{Version: joinVersion, Secret: "s", Host: "h", CSR: csr, Node: Record{Name: "a", Gateway: "a:1", Peers: "a:2", Bus: "a:3"}}
	if err := writeMessage(&b, msgRequest, q); err != nil {
		f.Fatal(err)
	}
	return b.Bytes()
}

func FuzzReadRequest(f *testing.F) {
	whole := seedRequest(f)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add([]byte{msgRequest, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{msgRequest, 0, 0, 0, 4, 'n', 'u', 'l', 'l'})
	f.Add([]byte{msgAnswer, 0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		q, csr, err := readRequest(bytes.NewReader(b))
		if err != nil {
			return
		}
		if csr == nil || q.Version != joinVersion || len(q.Secret) > maxText || csr.CheckSignature() != nil {
			t.Fatalf("%+v", q)
		}
		q.Node.Name = wanted(q)
		if _, err := lode.ParseNodeID(string(q.Node.Name)); err != nil {
			t.Fatalf("wanted %q: %v", q.Node.Name, err)
		}
		for _, a := range []*string{&q.Node.Gateway, &q.Node.Peers, &q.Node.Bus} {
			*a = fillHost(*a, "10.0.0.1")
		}
		if q.Node.check() == nil {
			if b, err := json.Marshal(q.Node); err != nil {
				t.Fatal(err)
			} else if _, err := parseRecord(b); err != nil {
				t.Fatalf("%s: %v", b, err)
			}
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	for _, m := range []struct {
		kind byte
		v    any
	}{{msgAnswer, Answer{Version: 1, Cluster: "c", Node: "a", Nodes: []Record{{Name: "a"}}}}, {msgProblem, lode.Errorf(lode.Gone, "x")}, {msgProblem, nil}, {msgAnswer, 1}} {
		var b bytes.Buffer
		if err := writeMessage(&b, m.kind, m.v); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readAnswer(bytes.NewReader(b))
		if (a == nil) == (err == nil) {
			t.Fatal(a, err)
		}
		if a != nil {
			newPapers(a.CA, a.Cert, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
		}
	})
}

func FuzzReadGreeting(f *testing.F) {
	for _, e := range []*lode.Error{nil, lode.Errorf(lode.Gone, "x").WithHint("y")} {
		var b bytes.Buffer
		if err := greet(&b, e); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{greetRefused, 0xff, 0, 0, 0})
	f.Add([]byte{7})
	f.Fuzz(func(t *testing.T, b []byte) {
		err := readGreeting(bytes.NewReader(b))
		if (err == nil) != (len(b) > 0 && b[0] == greetWelcome) {
			t.Fatal(err)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"name":"a","gateway":"h:1","peers":"h:2","bus":"h:3","state":"ready","labels":{"k":"v"},"gpu":["x"],"cert_serial":"00"}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"name":"a","peers":"[::1]:2","started":"0001-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		r.mark()
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseRecord(out); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	})
}
