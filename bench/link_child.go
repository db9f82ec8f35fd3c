package bench

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net"
	"os/exec"
	"strconv"
	"time"

	"lode"
	"lode/link"
)

const echoNode = lode.NodeID("echo")

// tcpEcho answers every callSize bytes with the same: what the network and Go
// take by themselves. It prints its address.
func tcpEcho(ctx context.Context, stdout io.Writer) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return lode.Errorf(lode.Unavailable, "listen: %w", err)
	}
	defer ln.Close()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	fmt.Fprintln(stdout, ln.Addr())
	for {
		c, err := ln.Accept()
		if err != nil {
			return nil
		}
		go func() {
			defer c.Close()
			b := make([]byte, callSize)
			for {
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
	}
}

// linkEcho is the other node of bench link. It prints its address and, with
// TLS, its certificate.
func linkEcho(ctx context.Context, args []string, stdout io.Writer) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return lode.Errorf(lode.Unavailable, "listen: %w", err)
	}
	defer ln.Close()
	var cert []byte
	if len(args) > 0 && args[0] == "tls" {
		config, der, err := oneCertificate()
		if err != nil {
			return err
		}
		ln, cert = tls.NewListener(ln, config), der
	}
	l := link.New(link.Config{Self: echoNode, Handle: map[string]link.Handler{"echo": echoCall, "sink": sinkCall, "source": sourceCall}})
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	fmt.Fprintln(stdout, ln.Addr(), base64.StdEncoding.EncodeToString(cert))
	for {
		c, err := ln.Accept()
		if err != nil {
			return nil
		}
		go l.Serve(c, benchNode)
	}
}

func echoCall(_ context.Context, in *link.Incoming) error { return in.Reply(in.Head, in.Body) }

func sinkCall(_ context.Context, in *link.Incoming) error {
	_, err := io.Copy(io.Discard, in.Whole())
	return err
}

// sourceCall answers with as many bytes as the body says.
func sourceCall(_ context.Context, in *link.Incoming) error {
	n, err := strconv.ParseInt(string(in.Body), 10, 64)
	if err != nil {
		return lode.Errorf(lode.Invalid, "%w", err)
	}
	if err := in.Begin(nil); err != nil {
		return err
	}
	_, err = io.CopyBuffer(in, io.LimitReader(zeros{}, n), make([]byte, 64<<10))
	return err
}

// oneCertificate is a certificate for one run.
func oneCertificate() (*tls.Config, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, lode.Errorf(lode.Internal, "make a key: %w", err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{string(echoNode)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, nil, lode.Errorf(lode.Internal, "make a certificate: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, DynamicRecordSizingDisabled: true}, der, nil
}

// dialEcho connects to linkEcho: with TLS where it has a certificate.
func dialEcho(ctx context.Context, addr string, cert []byte) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil || len(cert) == 0 {
		return c, err
	}
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		c.Close()
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	t := tls.Client(c, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: string(echoNode), DynamicRecordSizingDisabled: true})
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return t, nil
}

// startPlain starts a plain program and waits for its first line.
func startPlain(ctx context.Context, path string, args ...string) (*process, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "start %s: %w", path, err)
	}
	p := &process{cmd: cmd}
	s := bufio.NewScanner(out)
	if !s.Scan() {
		p.stop()
		return nil, lode.Errorf(lode.Unavailable, "%s ended before it was ready", path)
	}
	p.first = s.Text()
	return p, nil
}
