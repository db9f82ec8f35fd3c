package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"time"

	"lode"
)

// body1K is the request of bench invoke: an order of 1,024 bytes, JSON for
// those who parse it and plain bytes for those who hash it.
func body1K() []byte {
	order := map[string]any{"id": "o-1", "items": []map[string]any{{"sku": "book", "price": 12, "count": 2}, {"sku": "pen", "price": 3, "count": 10}}, "note": ""}
	b, err := json.Marshal(order)
	if err != nil {
		panic(err) // plain data
	}
	order["note"] = string(bytes.Repeat([]byte("x"), 1024-len(b)))
	b, _ = json.Marshal(order)
	return b
}

// hashed is what the hashing handlers must answer.
func hashed(body []byte) []byte {
	h := fnv.New32a()
	h.Write(body)
	return fmt.Appendf(nil, "%08x\n", h.Sum32())
}

// side is one server and path that is measured.
type side struct {
	name string
	p    *process
	load load
}

// stretch is what one side did in one round.
type stretch struct {
	rate, p50, p99, cpu float64 // requests/s, us, us, us a request
}

func (s *side) measure(ctx context.Context, d time.Duration) (stretch, error) {
	before := s.p.cpu()
	res, err := s.load.run(ctx, d)
	if err != nil {
		return stretch{}, fmt.Errorf("%s: %w", s.name, err)
	}
	if res.failed > 0 {
		return stretch{}, lode.Errorf(lode.Internal, "%s: %d of %d requests failed", s.name, res.failed, res.requests)
	}
	cpu := (s.p.cpu() - before).Seconds() * 1e6 / float64(res.requests)
	return stretch{res.rate(), res.at(0.5), res.at(0.99), cpu}, nil
}

// rounds measures all sides in turn, r.Rounds times, after one that does not
// count.
func (r *runner) rounds(ctx context.Context, sides []*side, d time.Duration) (map[string][]stretch, error) {
	out := map[string][]stretch{}
	for i := -1; i < r.Rounds; i++ {
		for _, s := range sides {
			got, err := s.measure(ctx, d)
			if err != nil {
				return nil, err
			}
			if i >= 0 {
				out[s.name] = append(out[s.name], got)
			}
		}
	}
	return out, nil
}

func column(ss []stretch, f func(stretch) float64) []float64 {
	out := make([]float64, len(ss))
	for i, s := range ss {
		out[i] = f(s)
	}
	return out
}

func benchInvoke(ctx context.Context, r *runner) error {
	bare, err := r.start(ctx, "bench", "child", "httpd")
	if err != nil {
		return err
	}
	defer bare.stop()
	s, err := r.node(ctx, "node")
	if err != nil {
		return err
	}
	defer s.stop()
	body := body1K()
	sides := []*side{{"bare", bare, load{addr: bare.first, path: "/", body: body, callers: 64, want: hashed(body)}}}
	for _, lang := range []string{"c", "go", "js"} {
		a, err := r.guest(ctx, "hash-"+lang)
		if err != nil {
			return err
		}
		name := lode.Name("hash-" + lang)
		if err := s.deploy(ctx, name, a, nil, name); err != nil {
			return err
		}
		l := load{addr: s.addr, path: "/fn/" + string(name), body: body, callers: 64, want: hashed(body)}
		if lang == "js" {
			l.want = nil
			l.header = "Accept: application/json\r\n"
		}
		sides = append(sides, &side{lang, s.p, l})
	}
	got, err := r.rounds(ctx, sides, r.each(800*time.Millisecond))
	if err != nil {
		return err
	}
	rate := func(s stretch) float64 { return s.rate }
	cpu := func(s stretch) float64 { return s.cpu }
	for _, g := range []struct{ lang, must, aim string }{{"c", ">= 0.60", "0.85"}, {"go", ">= 0.40", "0.65"}, {"js", ">= 0.20", "0.4"}} {
		r.ratio("requests, 64 callers, "+g.lang+" guest", "req/s", column(got[g.lang], rate), column(got["bare"], rate), g.must, g.aim)
	}
	for _, lang := range []string{"c", "go", "js"} {
		r.ratio("CPU a request, "+lang+" guest", "us", column(got[lang], cpu), column(got["bare"], cpu), "", "")
	}
	if err := r.oneCaller(ctx, sides[0], sides[1]); err != nil {
		return err
	}
	if err := r.resets(ctx); err != nil {
		return err
	}
	return r.neighbours(ctx, s, sides[1])
}

// oneCaller measures what Lode adds for a caller that is alone.
func (r *runner) oneCaller(ctx context.Context, bare, c *side) error {
	b1, c1 := *bare, *c
	b1.load.callers, c1.load.callers = 1, 1
	b1.name, c1.name = "bare", "c"
	got, err := r.rounds(ctx, []*side{&b1, &c1}, r.each(500*time.Millisecond))
	if err != nil {
		return err
	}
	added := make([]float64, r.Rounds)
	for i := range added {
		added[i] = got["c"][i].p50 - got["bare"][i].p50
	}
	r.value("one caller, added latency, c guest (p50)", "us", added, "<= 40", "15")
	return nil
}

// hostile are guests that try to keep the cores.
var hostile = []struct{ name, what string }{{"loop", "an endless loop"}, {"fill", "a memory.fill loop"}, {"straight", "a straight-line body of 1 MB"}}

// neighbours measures the p99 of a well-behaved function alone and beside each
// hostile one, with garbage collections in the node all the while (the
// hashing load allocates).
func (r *runner) neighbours(ctx context.Context, s *site, c *side) error {
	a, err := r.guest(ctx, "hostile")
	if err != nil {
		return err
	}
	straight, err := r.straight()
	if err != nil {
		return err
	}
	short := func(_ lode.Name, f *lode.Function) { f.Limits.Total = 10 * time.Minute }
	if err := s.deploy(ctx, "hostile", a, func(n lode.Name, f *lode.Function) { short(n, f); f.Export = string(n) }, "loop", "fill"); err != nil {
		return err
	}
	if err := s.deploy(ctx, "straight", straight, short, "straight"); err != nil {
		return err
	}
	good := *c
	good.name, good.load.callers = "good", 8
	d := r.each(500 * time.Millisecond)
	for _, h := range hostile {
		alone, beside := make([]float64, r.Rounds), make([]float64, r.Rounds)
		for i := range alone {
			got, err := good.measure(ctx, d)
			if err != nil {
				return err
			}
			alone[i] = got.p99
			stop := s.torment(ctx, h.name)
			got, err = good.measure(ctx, d)
			stop()
			if err != nil {
				return err
			}
			beside[i] = got.p99
		}
		r.ratio("neighbours' p99 beside "+h.what, "us", beside, alone, "<= 3", "2")
	}
	return nil
}

// torment calls a hostile function until stop is called.
func (s *site) torment(ctx context.Context, name string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.post(ctx, "/fn/"+name, nil)
	}()
	time.Sleep(100 * time.Millisecond) // it is well into its loop
	return func() {
		cancel()
		<-done
		time.Sleep(50 * time.Millisecond) // and is stopped
	}
}

// resets measures the reset alone, in this process, against nothing: how long
// it takes to make a sandbox clean, proof included.
func (r *runner) resets(ctx context.Context) error {
	for _, g := range []struct{ guest, lang, must, aim string }{{"hash-c", "C", "<= 2.5", "1"}, {"hash-go", "Go", "<= 10", "3"}} {
		a, err := r.guest(ctx, g.guest)
		if err != nil {
			return err
		}
		box, err := openBox(ctx, a.Wasm)
		if err != nil {
			return err
		}
		vals := make([]float64, r.Rounds)
		for i := range vals {
			if vals[i], err = box.resetTime(ctx, body1K(), 2000); err != nil {
				box.close()
				return err
			}
		}
		box.close()
		if math.IsNaN(median(vals)) {
			return lode.Errorf(lode.Internal, "no reset of the %s guest was measured", g.lang)
		}
		r.value("reset alone, proof included, "+g.lang, "us", vals, g.must, g.aim)
	}
	return nil
}
