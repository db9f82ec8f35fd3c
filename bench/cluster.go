package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/api"
)

func benchCluster(ctx context.Context, r *runner) error {
	parts := []func(context.Context) error{r.clusterHop, r.clusterKill, r.clusterRoll, r.clusterGrow, r.clusterWords, r.clusterIdle}
	if only := os.Getenv("LODE_BENCH_PART"); only != "" { // for whoever works on one of them
		i := slices.Index([]string{"hop", "kill", "roll", "grow", "words", "idle"}, only)
		if i < 0 {
			return lode.Errorf(lode.NotFound, "bench cluster has no part %q", only)
		}
		parts = parts[i : i+1]
	}
	for _, part := range parts {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// clusterHop: a gateway whose node runs nothing itself against one that runs
// the function.
func (r *runner) clusterHop(ctx context.Context) error {
	t, err := r.trio(ctx, "hop", "--gateway-only")
	if err != nil {
		return err
	}
	defer t.stop()
	if err := t.deployHash(ctx); err != nil {
		return err
	}
	body := body1K()
	here := load{addr: t.nodes[1].addr, path: "/fn/hash", body: body, callers: 1, want: hashed(body)}
	there := here
	there.addr = t.nodes[0].addr
	var added []float64
	for i := -1; i < r.Rounds; i++ {
		l, err := here.run(ctx, r.each(2*time.Second))
		if err != nil {
			return err
		}
		f, err := there.run(ctx, r.each(2*time.Second))
		if err != nil {
			return err
		}
		if i >= 0 {
			added = append(added, f.at(0.5)-l.at(0.5))
		}
		if l.failed+f.failed > 0 {
			return lode.Errorf(lode.Internal, "%d local and %d forwarded requests failed", l.failed, f.failed)
		}
	}
	r.value("HTTP hello through a gateway without the function, added to local, p50", "us", added, "<= 150 us", "60")
	return nil
}

func (t *trio) deployHash(ctx context.Context) error {
	a, err := t.r.guest(ctx, "hash-c")
	if err != nil {
		return err
	}
	return t.nodes[0].deploy(ctx, "bench", a, nil, "hash")
}

// clusterKill: all requests come through a, which runs nothing itself; c is
// killed. What ran on c and may not be repeated fails; nothing else does.
func (r *runner) clusterKill(ctx context.Context) error {
	var unsafe, safe, back []float64
	for i := range r.Rounds {
		l, at, err := r.killOnce(ctx, fmt.Sprintf("kill%d", i))
		if err != nil {
			return err
		}
		safe = append(safe, float64(l.failures(http.MethodGet)))
		unsafe = append(unsafe, float64(l.failures(http.MethodPost)))
		back = append(back, l.recovered(at).Seconds())
	}
	r.value("kill -9 of one of three: requests that failed, safe to retry", "requests", safe, "0", "0")
	r.value("kill -9 of one of three: requests that failed, not safe, of 16 callers", "requests", unsafe, "<= 16", "0")
	r.value("kill -9 of one of three: time until p99 is back", "s", back, "<= 3 s", "1")
	return nil
}

func (r *runner) killOnce(ctx context.Context, dir string) (*timed, time.Time, error) {
	t, err := r.trio(ctx, dir, "--gateway-only")
	if err != nil {
		return nil, time.Time{}, err
	}
	defer t.stop()
	if err := t.deployHash(ctx); err != nil {
		return nil, time.Time{}, err
	}
	l := startTimed(ctx, []string{t.nodes[0].addr}, 16, body1K())
	time.Sleep(r.each(4 * time.Second))
	at := time.Now()
	t.nodes[2].kill()
	time.Sleep(r.each(5 * time.Second))
	return l, at, l.stop()
}

// clusterRoll restarts the three nodes one after the other under load.
// Clients know all three gateways and go on to the next when one does not take
// their connection.
func (r *runner) clusterRoll(ctx context.Context) error {
	t, err := r.trio(ctx, "roll")
	if err != nil {
		return err
	}
	defer t.stop()
	if err := t.deployHash(ctx); err != nil {
		return err
	}
	l := startTimed(ctx, []string{t.nodes[0].addr, t.nodes[1].addr, t.nodes[2].addr}, 12, body1K())
	defer l.stop()
	time.Sleep(time.Second)
	for i, s := range t.nodes {
		s.stop()
		if t.nodes[i], err = r.restart(ctx, s); err != nil {
			return err
		}
		if err := t.settled(ctx, 3); err != nil {
			return err
		}
	}
	time.Sleep(time.Second)
	if err := l.stop(); err != nil {
		return err
	}
	r.logf("rolling restart: %d requests", len(l.all))
	r.value("rolling restart of all three: requests that failed", "requests", []float64{float64(l.failures(""))}, "0", "0")
	return nil
}

// clusterGrow: one node with queued work becomes three while writes go on.
func (r *runner) clusterGrow(ctx context.Context) error {
	const tasks = 10000
	first, err := r.member(ctx, "grow/a", "a", nil)
	if err != nil {
		return err
	}
	t := &trio{r: r}
	t.nodes[0] = first
	defer t.stop()
	m := newMarks()
	defer m.Close()
	a, err := r.guest(ctx, "mark")
	if err != nil {
		return err
	}
	edit := func(_ lode.Name, f *lode.Function) {
		f.Env = map[string]string{"MARK": m.URL}
		f.Egress = lode.Egress{Mode: "list", Allow: []string{"127.0.0.1"}}
		f.Limits.ScaleMax = 1 // so that most wait while the cluster grows
	}
	if err := first.deploy(ctx, "grow", a, edit, "mark"); err != nil {
		return err
	}
	ids, err := first.submit(ctx, "mark", tasks)
	if err != nil {
		return err
	}
	w := startWrites(ctx, first)
	began := time.Now()
	if err := t.grow(ctx, "grow"); err != nil {
		return err
	}
	r.logf("one node became three in %.1f s, %d of %d tasks done", time.Since(began).Seconds(), m.ran(), tasks)
	refused, longest := w.stop()
	lost := 0
	for _, id := range ids {
		c, err := first.GetCall(ctx, id, time.Minute)
		if err != nil || c.State != lode.StateDone {
			lost++
		}
	}
	doubled := 0
	for _, n := range m.counts() {
		if n > 1 {
			doubled++
		}
	}
	r.value("growing from one to three, 10,000 queued tasks: lost", "tasks", []float64{float64(lost)}, "0", "0")
	r.value("growing from one to three, 10,000 queued tasks: doubled", "tasks", []float64{float64(doubled)}, "0", "0")
	r.value("growing from one to three: writes refused", "writes", []float64{float64(refused)}, "", "")
	r.value("growing from one to three: longest write", "s", []float64{longest.Seconds()}, "<= 10 s", "2")
	return nil
}

// submit queues n asynchronous calls over a few connections.
func (s *site) submit(ctx context.Context, name lode.Name, n int) ([]lode.InvocationID, error) {
	ids := make([]lode.InvocationID, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for k := range errs {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || errs[k] != nil {
					return
				}
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.addr+"/fn/"+string(name), strings.NewReader(fmt.Sprintf("%q", fmt.Sprint("t", i))))
				if err != nil {
					errs[k] = err
					return
				}
				req.Header.Set("Prefer", "respond-async")
				req.Header.Set("Content-Type", "application/json")
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					errs[k] = err
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusAccepted {
					errs[k] = lode.Errorf(lode.Internal, "submit answered %s", resp.Status)
					return
				}
				ids[i] = lode.InvocationID(resp.Header.Get("Lode-Invocation"))
			}
		})
	}
	wg.Wait()
	return ids, errors.Join(errs...)
}

// marks counts how often each task told that it ran.
type marks struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]int
}

func newMarks() *marks {
	m := &marks{seen: map[string]int{}}
	m.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		m.mu.Lock()
		m.seen[q.URL.Path]++
		m.mu.Unlock()
	}))
	return m
}

func (m *marks) ran() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.seen)
}

func (m *marks) counts() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen
}

// writes sets a secret again and again and measures how long each takes.
type writes struct {
	cancel  context.CancelFunc
	done    chan struct{}
	refused int
	longest time.Duration
}

func startWrites(ctx context.Context, s *site) *writes {
	ctx, cancel := context.WithCancel(ctx)
	w := &writes{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		var since time.Time // of the first refusal in a row
		for i := 0; ctx.Err() == nil; i++ {
			start := time.Now()
			err := s.SetSecret(ctx, "BENCH", fmt.Append(nil, i))
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				w.refused++
				if since.IsZero() {
					since = start
				}
				time.Sleep(10 * time.Millisecond)
				continue
			}
			if since.IsZero() {
				since = start
			}
			w.longest = max(w.longest, time.Since(since))
			since = time.Time{}
		}
	}()
	return w
}

// stop returns the refused writes and the longest time without one that came
// through.
func (w *writes) stop() (refused int, longest time.Duration) {
	w.cancel()
	<-w.done
	return w.refused, w.longest
}

// clusterWords counts words on one node and on three, in turn.
func (r *runner) clusterWords(ctx context.Context) error {
	files, err := goSources()
	if err != nil {
		return err
	}
	one, err := r.node(ctx, "words1")
	if err != nil {
		return err
	}
	defer one.stop()
	t, err := r.trio(ctx, "words3")
	if err != nil {
		return err
	}
	defer t.stop()
	var speed [2][]float64
	for i := -1; i < r.Rounds; i++ {
		for k, s := range []*site{one, t.nodes[0]} {
			if i < 0 {
				if err := s.put(ctx, "gosrc", api.PutOptions{Records: lode.RecordsFiles, Shard: 4 << 20}, files); err != nil {
					return err
				}
			}
			took, j, _, err := s.job(ctx, api.JobSpec{Function: "builtin:words", Dataset: "gosrc"})
			if err != nil {
				return err
			}
			if i >= 0 {
				speed[k] = append(speed[k], float64(j.Bytes)/took.Seconds()/1e6)
			}
		}
	}
	r.ratio("word count on three nodes against one", "MB/s", speed[1], speed[0], ">= 1.0", "")
	return nil
}

// clusterIdle is the resident memory of a node that does nothing, in a cluster
// of three.
func (r *runner) clusterIdle(ctx context.Context) error {
	t, err := r.trio(ctx, "idle")
	if err != nil {
		return err
	}
	defer t.stop()
	time.Sleep(r.each(10 * time.Second))
	var mem []float64
	for _, s := range t.nodes {
		mem = append(mem, float64(s.p.rss())/1e6)
	}
	r.value("memory of an idle node of three", "MB", mem, "<= 120 MB", "60")
	return nil
}

// timed drives gateways and notes when each request ended, and how.
type timed struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	all    []timedCall
	err    error
}

type timedCall struct {
	method string
	start  time.Time
	took   time.Duration
	failed string // "": it was answered with 200
}

// startTimed has callers that send GET and POST in turn. Only a connection that
// a gateway does not take sends them on to the next gateway.
func startTimed(ctx context.Context, addrs []string, callers int, body []byte) *timed {
	ctx, cancel := context.WithCancel(ctx)
	l := &timed{cancel: cancel}
	for k := range callers {
		l.wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4, DisableCompression: true}}
			defer client.CloseIdleConnections()
			var own []timedCall
			for i := k; ctx.Err() == nil; i++ {
				c := timedCall{method: http.MethodGet, start: time.Now()}
				if i%2 == 0 {
					c.method = http.MethodPost
				}
				c.failed = sendTimed(client, addrs, k, c.method, body)
				c.took = time.Since(c.start)
				own = append(own, c)
			}
			l.mu.Lock()
			l.all = append(l.all, own...)
			l.mu.Unlock()
		})
	}
	return l
}

func sendTimed(client *http.Client, addrs []string, first int, method string, body []byte) string {
	why := ""
	for i := range addrs {
		var send io.Reader
		if method == http.MethodPost {
			send = bytes.NewReader(body)
		}
		req, err := http.NewRequest(method, "http://"+addrs[(first+i)%len(addrs)]+"/fn/hash", send)
		if err != nil {
			return err.Error()
		}
		resp, err := client.Do(req)
		if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
			why = err.Error()
			continue
		}
		if err != nil {
			return err.Error()
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err.Error()
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Sprintf("%d %.300s", resp.StatusCode, b)
		}
		return ""
	}
	return why
}

func (l *timed) stop() error {
	l.cancel()
	l.wg.Wait()
	return l.err
}

// failures counts the requests of a method, or of all, that failed.
func (l *timed) failures(method string) (n int) {
	for _, c := range l.all {
		if c.failed != "" && (method == "" || c.method == method) {
			n++
			if os.Getenv("LODE_BENCH_DEBUG") != "" {
				fmt.Fprintln(os.Stderr, c.method, c.start.Format("05.000"), c.took, c.failed)
			}
		}
	}
	return n
}

// recovered is how long after at the p99 was back: from then on, for half a
// second, no window of 100 ms had twice the p99 of before.
func (l *timed) recovered(at time.Time) time.Duration {
	const window, calm = 100 * time.Millisecond, 5
	var before []time.Duration
	after := map[int][]time.Duration{}
	most := 0
	for _, c := range l.all {
		end := c.start.Add(c.took)
		switch {
		case end.Before(at) && at.Sub(end) < 2*time.Second:
			before = append(before, c.took)
		case end.After(at):
			w := int(end.Sub(at) / window)
			after[w], most = append(after[w], c.took), max(most, w)
		}
	}
	bound := 2 * quantile(before, 0.99)
	good := 0
	for w := range most {
		if d := after[w]; len(d) == 0 || quantile(d, 0.99) > bound {
			good = 0
		} else if good++; good == calm {
			return time.Duration(w+1-calm) * window
		}
	}
	return time.Duration(most) * window
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}
