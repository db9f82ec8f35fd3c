package bench

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"lode"
	"lode/link"
)

// callSize is the body of a call in bench link, there and back.
const callSize = 1024

// benchLink measures the connection between two nodes: this process and a
// child, against a raw TCP ping-pong and ZeroMQ between two processes as well.
func benchLink(ctx context.Context, r *runner) error {
	zmq, err := r.compileC(ctx, "zmq.c", "-lzmq")
	if err != nil {
		return lode.AsError(err).WithHint("bench/setup.sh tools installs ZeroMQ's headers")
	}
	plain, err := r.linkPeer(ctx, false)
	if err != nil {
		return err
	}
	defer plain.close()
	secure, err := r.linkPeer(ctx, true)
	if err != nil {
		return err
	}
	defer secure.close()
	if err := r.linkAlone(ctx, plain, secure, zmq); err != nil {
		return err
	}
	if err := r.linkMany(ctx, plain, secure); err != nil {
		return err
	}
	return r.linkBeside(ctx, plain, secure)
}

// linkAlone measures one caller: raw TCP, ZeroMQ and the link in turn.
func (r *runner) linkAlone(ctx context.Context, plain, secure *linkPeer, zmq string) error {
	raw, err := r.start(ctx, "bench", "child", "tcp-echo")
	if err != nil {
		return err
	}
	defer raw.stop()
	rep, err := startPlain(ctx, zmq, "serve")
	if err != nil {
		return err
	}
	defer rep.stop()
	conn, err := net.Dial("tcp", raw.first)
	if err != nil {
		return lode.Errorf(lode.Unavailable, "dial %s: %w", raw.first, err)
	}
	defer conn.Close()
	d := r.each(500 * time.Millisecond)
	body, back := make([]byte, callSize), make([]byte, callSize)
	sides := []struct {
		name string
		run  func() (loadResult, error)
	}{
		{"tcp", func() (loadResult, error) {
			return callers(1, d, func() error {
				if _, err := conn.Write(body); err != nil {
					return err
				}
				_, err := io.ReadFull(conn, back)
				return err
			})
		}},
		{"link", func() (loadResult, error) { return callers(1, d, func() error { return plain.call(ctx, body) }) }},
		{"tls", func() (loadResult, error) { return callers(1, d, func() error { return secure.call(ctx, body) }) }},
	}
	p50, p99 := map[string][]float64{}, map[string][]float64{}
	for i := -1; i < r.Rounds; i++ {
		for _, s := range sides {
			got, err := s.run()
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if i >= 0 {
				p50[s.name], p99[s.name] = append(p50[s.name], got.at(0.5)), append(p99[s.name], got.at(0.99))
			}
		}
		half, most, err := zmqCall(ctx, zmq, rep.first, d)
		if err != nil {
			return err
		}
		if i >= 0 {
			p50["zmq"], p99["zmq"] = append(p50["zmq"], half), append(p99["zmq"], most)
		}
	}
	r.ratio("1 KB call, one caller, p50, against raw TCP", "us", p50["link"], p50["tcp"], "<= 2", "1.2")
	r.ratio("the same against C ZeroMQ", "us", p50["link"], p50["zmq"], "<= 1", "")
	r.ratio("the same with TLS, against raw TCP without", "us", p50["tls"], p50["tcp"], "", "")
	r.ratio("1 KB call, one caller, p99, against raw TCP", "us", p99["link"], p99["tcp"], "", "")
	r.ratio("the same against C ZeroMQ", "us", p99["link"], p99["zmq"], "", "")
	return nil
}

// linkMany measures 64 callers.
func (r *runner) linkMany(ctx context.Context, plain, secure *linkPeer) error {
	d := r.each(time.Second)
	body := make([]byte, callSize)
	rates, cpus := map[*linkPeer][]float64{}, map[*linkPeer][]float64{}
	for i := -1; i < r.Rounds; i++ {
		for _, p := range []*linkPeer{plain, secure} {
			before := p.p.cpu()
			got, err := callers(64, d, func() error { return p.call(ctx, body) })
			if err != nil {
				return err
			}
			if i >= 0 {
				rates[p] = append(rates[p], got.rate())
				cpus[p] = append(cpus[p], (p.p.cpu()-before).Seconds()*1e6/float64(got.requests))
			}
		}
	}
	r.value("1 KB calls, 64 callers", "calls/s", rates[plain], ">= 120000", "220,000")
	r.value("the same with TLS", "calls/s", rates[secure], ">= 60000", "90,000")
	r.value("CPU of the answering node, a call", "us", cpus[plain], "", "")
	r.value("the same with TLS", "us", cpus[secure], "", "")
	return nil
}

// linkBeside measures small calls alone, and while 1 GiB goes by beside them
// over the same connection, in each direction.
func (r *runner) linkBeside(ctx context.Context, plain, secure *linkPeer) error {
	const size = 1 << 30
	d := r.each(time.Second)
	body := make([]byte, callSize)
	for _, side := range []struct {
		name string
		p    *linkPeer
		move func(context.Context, int64) error
		must string
		aim  string
	}{
		{"1 GiB to the peer", plain, plain.send, "<= 5", "2"},
		{"1 GiB from the peer", plain, plain.receive, "<= 5", "2"},
		{"1 GiB to the peer, with TLS", secure, secure.send, "", ""},
	} {
		var idle, beside, rates []float64
		for i := -1; i < r.Rounds; i++ {
			alone, err := callers(1, d, func() error { return side.p.call(ctx, body) })
			if err != nil {
				return err
			}
			busy, rate, err := besides(ctx, side.p, body, func() error { return side.move(ctx, size) })
			if err != nil {
				return err
			}
			if i >= 0 {
				idle, beside = append(idle, alone.at(0.99)), append(beside, busy.at(0.99))
				rates = append(rates, size/rate.Seconds()/1e6)
			}
		}
		r.ratio("small calls' p99 beside "+side.name, "us", beside, idle, side.must, side.aim)
		r.value("at which it moves", "MB/s", rates, "", "")
	}
	return nil
}

// besides calls while move runs, and says how long move took.
func besides(ctx context.Context, p *linkPeer, body []byte, move func() error) (loadResult, time.Duration, error) {
	var took time.Duration
	moved := make(chan error, 1)
	go func() {
		start := time.Now()
		err := move()
		took = time.Since(start)
		moved <- err
	}()
	var res loadResult
	for {
		select {
		case err := <-moved:
			slices.Sort(res.lat)
			return res, took, err
		default:
		}
		start := time.Now()
		if err := p.call(ctx, body); err != nil {
			<-moved
			return res, took, err
		}
		res.lat = append(res.lat, time.Since(start))
	}
}

// callers runs call in n goroutines for d.
func callers(n int, d time.Duration, call func() error) (loadResult, error) {
	var wg sync.WaitGroup
	lats, errs := make([][]time.Duration, n), make([]error, n)
	start := time.Now()
	for i := range n {
		wg.Go(func() {
			for now := time.Now(); now.Sub(start) < d; {
				if errs[i] = call(); errs[i] != nil {
					return
				}
				end := time.Now()
				lats[i] = append(lats[i], end.Sub(now))
				now = end
			}
		})
	}
	wg.Wait()
	res := loadResult{elapsed: time.Since(start)}
	for i := range n {
		if errs[i] != nil {
			return res, errs[i]
		}
		res.lat = append(res.lat, lats[i]...)
	}
	res.requests = len(res.lat)
	slices.Sort(res.lat)
	return res, nil
}

// zmqCall runs ZeroMQ's caller and reads its median and 99th percentile.
func zmqCall(ctx context.Context, zmq, endpoint string, d time.Duration) (p50, p99 float64, err error) {
	out, err := exec.CommandContext(ctx, zmq, "call", endpoint, fmt.Sprint(callSize), fmt.Sprint(d.Milliseconds())).Output()
	if err != nil {
		return 0, 0, lode.Errorf(lode.Internal, "the ZeroMQ caller failed: %w", err)
	}
	var n int
	if _, err := fmt.Sscan(string(out), &n, &p50, &p99); err != nil {
		return 0, 0, lode.Errorf(lode.Internal, "the ZeroMQ caller said %q", out)
	}
	return p50, p99, nil
}

// linkPeer is a link to a node process that answers calls and nothing else.
type linkPeer struct {
	p *process
	l *link.Link
}

const benchNode = lode.NodeID("bench")

func (r *runner) linkPeer(ctx context.Context, secure bool) (*linkPeer, error) {
	args := []string{"bench", "child", "link-echo"}
	if secure {
		args = append(args, "tls")
	}
	p, err := r.start(ctx, args...)
	if err != nil {
		return nil, err
	}
	addr, cert, _ := strings.Cut(p.first, " ")
	der, err := base64.StdEncoding.DecodeString(cert)
	if err != nil {
		p.stop()
		return nil, lode.Errorf(lode.Internal, "the link's other side said %q", p.first)
	}
	l := link.New(link.Config{Self: benchNode, Dial: func(ctx context.Context, _ lode.NodeID) (net.Conn, error) { return dialEcho(ctx, addr, der) }})
	l.SetPeers([]lode.NodeID{echoNode})
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := l.Wait(wait, echoNode); err != nil {
		l.Close()
		p.stop()
		return nil, err
	}
	return &linkPeer{p, l}, nil
}

func (p *linkPeer) close() {
	p.l.Close()
	p.p.stop()
}

func (p *linkPeer) call(ctx context.Context, body []byte) error {
	var got link.Bytes
	if err := p.l.Call(ctx, echoNode, &link.Request{Method: "echo", Body: body}, &got); err != nil {
		return err
	}
	if len(got.Body) != len(body) {
		return lode.Errorf(lode.Internal, "%d bytes came back for %d", len(got.Body), len(body))
	}
	return nil
}

// send streams n bytes to the peer, who throws them away.
func (p *linkPeer) send(ctx context.Context, n int64) error {
	return p.l.Call(ctx, echoNode, &link.Request{Method: "sink", Stream: io.LimitReader(zeros{}, n)}, nil)
}

// receive streams n bytes from the peer.
func (p *linkPeer) receive(ctx context.Context, n int64) error {
	got := new(counted)
	if err := p.l.Call(ctx, echoNode, &link.Request{Method: "source", Body: fmt.Append(nil, n)}, got); err != nil {
		return err
	}
	if got.n != n {
		return lode.Errorf(lode.Internal, "%d bytes of %d came", got.n, n)
	}
	return nil
}

// zeros is a body without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// counted is an answer of which only the size is kept.
type counted struct{ n int64 }

func (c *counted) Head([]byte) error { return nil }
func (c *counted) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
