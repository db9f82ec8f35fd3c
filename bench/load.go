package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"lode"
)

// load drives one HTTP server with keep-alive callers over raw TCP. It does
// the least that HTTP/1.1 needs, so that on shared cores the server, not the
// caller, is what is measured.
type load struct {
	addr    string // host:port
	host    string // Host header; "" = addr
	path    string
	body    []byte
	callers int
	header  string // further header lines, each ending in \r\n
	want    []byte // if set, every answer's body must equal it
}

// loadResult is one measured stretch.
type loadResult struct {
	requests int
	failed   int // answers that were not 200, or connections lost
	elapsed  time.Duration
	lat      []time.Duration // sorted
}

func (r loadResult) rate() float64 { return float64(r.requests) / r.elapsed.Seconds() }

// at returns the latency at quantile q in microseconds.
func (r loadResult) at(q float64) float64 {
	if len(r.lat) == 0 {
		return 0
	}
	return float64(r.lat[min(len(r.lat)-1, int(q*float64(len(r.lat))))].Nanoseconds()) / 1e3
}

// run drives the server for d.
func (l load) run(ctx context.Context, d time.Duration) (loadResult, error) {
	req := l.request(l.path)
	conns := make([]net.Conn, l.callers)
	for i := range conns {
		c, err := net.Dial("tcp", l.addr)
		if err != nil {
			return loadResult{}, lode.Errorf(lode.Unavailable, "dial %s: %w", l.addr, err)
		}
		defer c.Close()
		conns[i] = c
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		total loadResult
		first error
	)
	start := time.Now()
	end := start.Add(d)
	for _, c := range conns {
		wg.Go(func() {
			one, err := l.caller(ctx, c, req, end)
			mu.Lock()
			defer mu.Unlock()
			total.requests += one.requests
			total.failed += one.failed
			total.lat = append(total.lat, one.lat...)
			if first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	total.elapsed = time.Since(start)
	slices.Sort(total.lat)
	return total, first
}

// request is the bytes of one POST to path.
func (l load) request(path string) []byte {
	host := l.host
	if host == "" {
		host = l.addr
	}
	req := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/octet-stream\r\n%sContent-Length: %d\r\n\r\n", path, host, l.header, len(l.body))
	return append(req, l.body...)
}

// once sends one request over a connection that was made before the clock
// started, and returns its time in milliseconds.
func (l load) once(ctx context.Context) (float64, error) {
	c, err := net.Dial("tcp", l.addr)
	if err != nil {
		return 0, lode.Errorf(lode.Unavailable, "dial %s: %w", l.addr, err)
	}
	defer c.Close()
	start := time.Now()
	if err := l.exchange(c, bufio.NewReader(c), l.path); err != nil {
		return 0, err
	}
	return float64(time.Since(start).Microseconds()) / 1e3, ctx.Err()
}

// each calls every function of next once over one connection.
func (l load) each(ctx context.Context, next <-chan lode.Name) error {
	c, err := net.Dial("tcp", l.addr)
	if err != nil {
		return lode.Errorf(lode.Unavailable, "dial %s: %w", l.addr, err)
	}
	defer c.Close()
	br := bufio.NewReader(c)
	for name := range next {
		if err := l.exchange(c, br, "/fn/"+string(name)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (l load) exchange(c net.Conn, br *bufio.Reader, path string) error {
	if _, err := c.Write(l.request(path)); err != nil {
		return lode.Errorf(lode.Unavailable, "send to %s: %w", l.addr, err)
	}
	status, body, err := readAnswer(br, nil)
	if err != nil {
		return lode.Errorf(lode.Unavailable, "answer of %s: %w", l.addr, err)
	}
	if status != 200 || l.want != nil && !bytes.Equal(body, l.want) {
		return lode.Errorf(lode.Internal, "%s%s answered %d %.200q", l.addr, path, status, body)
	}
	return nil
}

func (l load) caller(ctx context.Context, c net.Conn, req []byte, end time.Time) (res loadResult, err error) {
	br := bufio.NewReaderSize(c, 16<<10)
	var body []byte
	for ctx.Err() == nil {
		t0 := time.Now()
		if t0.After(end) {
			return res, nil
		}
		if _, err := c.Write(req); err != nil {
			return res, lode.Errorf(lode.Unavailable, "send to %s: %w", l.addr, err)
		}
		var status int
		status, body, err = readAnswer(br, body)
		if err != nil {
			return res, lode.Errorf(lode.Unavailable, "answer of %s: %w", l.addr, err)
		}
		res.lat = append(res.lat, time.Since(t0))
		res.requests++
		if status != 200 {
			res.failed++
		} else if l.want != nil && !bytes.Equal(body, l.want) {
			return res, lode.Errorf(lode.Internal, "%s%s answered %.80q, not %.80q", l.addr, l.path, body, l.want)
		}
	}
	return res, ctx.Err()
}

// readAnswer reads one HTTP/1.1 answer; body is reused.
func readAnswer(br *bufio.Reader, body []byte) (status int, _ []byte, err error) {
	line, err := br.ReadSlice('\n')
	if err != nil {
		return 0, body, err
	}
	if len(line) < 12 {
		return 0, body, fmt.Errorf("status line %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, body, err
	}
	length := -1
	chunked := false
	for {
		if line, err = br.ReadSlice('\n'); err != nil {
			return 0, body, err
		}
		if len(line) <= 2 {
			break
		}
		if len(line) > 16 && (line[0] == 'C' || line[0] == 'c') && bytes.EqualFold(line[:15], []byte("content-length:")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[15:]))); err != nil {
				return 0, body, err
			}
		}
		if (line[0] == 'T' || line[0] == 't') && bytes.HasPrefix(bytes.ToLower(line), []byte("transfer-encoding: chunked")) {
			chunked = true
		}
	}
	body = body[:0]
	if !chunked {
		if length > cap(body) {
			body = make([]byte, length)
		}
		body = body[:max(length, 0)]
		_, err = io.ReadFull(br, body)
		return status, body, err
	}
	for {
		if line, err = br.ReadSlice('\n'); err != nil {
			return 0, body, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return 0, body, err
		}
		at := len(body)
		body = slices.Grow(body, int(n)+2)[:at+int(n)+2]
		if _, err := io.ReadFull(br, body[at:]); err != nil {
			return 0, body, err
		}
		body = body[:at+int(n)]
		if n == 0 {
			return status, body, nil
		}
	}
}
