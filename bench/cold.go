package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"lode"
	"lode/api"
	"lode/cmd/build"
)

// variantMark stands in the data of the hashing guests; variant replaces it, so
// that each is another module to the compiler.
var variantMark = []byte("LODE-VARIANT-00000000")

func variant(a *build.Artifact, n int) (*build.Artifact, error) {
	if !bytes.Contains(a.Wasm, variantMark) {
		return nil, lode.Errorf(lode.Internal, "the %s guest has no variant mark", a.Language)
	}
	v := *a
	v.Wasm = bytes.ReplaceAll(a.Wasm, variantMark, fmt.Appendf(nil, "LODE-VARIANT-%08d", n))
	v.Digest = blake3.Sum256(v.Wasm)
	return &v, nil
}

func benchCold(ctx context.Context, r *runner) error {
	golang, err := r.guest(ctx, "hash-go")
	if err != nil {
		return err
	}
	c, err := r.guest(ctx, "hash-c")
	if err != nil {
		return err
	}
	for _, part := range []func(context.Context, *build.Artifact, *build.Artifact) error{r.firstInMemory, r.firstOnDisk, r.firstElsewhere, r.firstHere, r.coldRate, r.idleMemory} {
		if err := part(ctx, golang, c); err != nil {
			return err
		}
	}
	return nil
}

// first is the time of one request over a connection that is already there, in
// milliseconds. It fails unless the sandbox was made for it.
func (s *site) first(ctx context.Context, name lode.Name, body []byte) (float64, error) {
	l := load{addr: s.addr, path: "/fn/" + string(name), body: body, callers: 1, want: hashed(body)}
	return l.once(ctx)
}

// firstInMemory: the program is loaded, no sandbox is warm.
func (r *runner) firstInMemory(ctx context.Context, golang, _ *build.Artifact) error {
	s, err := r.node(ctx, "memory", "--warm", "100ms")
	if err != nil {
		return err
	}
	defer s.stop()
	if err := s.deploy(ctx, "cold", golang, nil, "cold"); err != nil {
		return err
	}
	vals := make([]float64, 2*r.Rounds)
	for i := -1; i < len(vals); i++ {
		v, err := s.first(ctx, "cold", body1K())
		if err != nil {
			return err
		}
		if i >= 0 {
			vals[i] = v
		}
		time.Sleep(300 * time.Millisecond) // the sandbox goes, the program stays
	}
	r.value("first request, Go, module in memory", "ms", vals, "<= 1 ms", "0.2")
	return nil
}

// firstOnDisk: the node runs, the program was dropped, its code is on disk.
func (r *runner) firstOnDisk(ctx context.Context, golang, _ *build.Artifact) error {
	s, err := r.node(ctx, "disk", "--warm", "100ms", "--code-cache", "1KiB")
	if err != nil {
		return err
	}
	defer s.stop()
	if err := s.deploy(ctx, "cold", golang, nil, "cold"); err != nil {
		return err
	}
	vals := make([]float64, r.Rounds)
	for i := -1; i < len(vals); i++ {
		v, err := s.first(ctx, "cold", body1K())
		if err != nil {
			return err
		}
		if i >= 0 {
			vals[i] = v
		}
		time.Sleep(400 * time.Millisecond)
	}
	r.value("first request, Go, code on disk", "ms", vals, "<= 100 ms", "40")
	return nil
}

// firstElsewhere: another process compiled it; this one has just started on a
// copy of that one's folder and has seen nothing of the module.
func (r *runner) firstElsewhere(ctx context.Context, golang, _ *build.Artifact) error {
	s, err := r.node(ctx, "origin")
	if err != nil {
		return err
	}
	err = s.deploy(ctx, "cold", golang, nil, "cold")
	s.stop()
	if err != nil {
		return err
	}
	vals := make([]float64, r.Rounds)
	for i := range vals {
		name := fmt.Sprintf("copy%d", i)
		if err := os.CopyFS(filepath.Join(r.dir, name), os.DirFS(s.dir)); err != nil {
			return err
		}
		if err := secretsMode(filepath.Join(r.dir, name)); err != nil {
			return err
		}
		c, err := r.node(ctx, name)
		if err != nil {
			return err
		}
		vals[i], err = c.first(ctx, "cold", body1K())
		c.stop()
		if err != nil {
			return err
		}
	}
	r.value("first request, Go, compiled elsewhere, fresh process", "ms", vals, "<= 300 ms", "120")
	return nil
}

// secretsMode gives key files of a copied folder back their mode.
func secretsMode(dir string) error {
	for _, f := range []string{"secrets.key", "code.key", "admin.token"} {
		if err := os.Chmod(filepath.Join(dir, f), 0o600); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// firstHere: a module that nobody has compiled, from the upload to the answer.
func (r *runner) firstHere(ctx context.Context, golang, _ *build.Artifact) error {
	s, err := r.node(ctx, "here")
	if err != nil {
		return err
	}
	defer s.stop()
	vals := make([]float64, r.Rounds)
	for i := range vals {
		v, err := variant(golang, i+1)
		if err != nil {
			return err
		}
		start := time.Now()
		if err := s.deploy(ctx, "cold", v, nil, "cold"); err != nil {
			return err
		}
		if _, err := s.first(ctx, "cold", body1K()); err != nil {
			return err
		}
		vals[i] = float64(time.Since(start).Microseconds()) / 1e3
	}
	r.value("first request, Go, compiled here, deploy included", "ms", vals, "<= 2000 ms", "800")
	return nil
}

// coldRate: cold starts a second of different functions, from as many callers
// as cores.
func (r *runner) coldRate(ctx context.Context, golang, c *build.Artifact) error {
	const cs, gos = 200, 40
	s, err := r.node(ctx, "rate", "--warm", "100ms", "--code-cache", "1KiB")
	if err != nil {
		return err
	}
	defer s.stop()
	var names []lode.Name
	for i := range cs {
		v, err := variant(c, i+1)
		if err != nil {
			return err
		}
		name := lode.Name(fmt.Sprintf("c%d", i))
		names = append(names, name)
		if err := s.deploy(ctx, name, v, nil, name); err != nil {
			return err
		}
	}
	rates := make([]float64, r.Rounds)
	for i := range rates {
		if rates[i], err = s.sweep(ctx, names); err != nil {
			return err
		}
		time.Sleep(400 * time.Millisecond)
	}
	r.value("cold starts a second, different functions, C from disk", "1/s", rates, ">= 1000", "4000")
	g, err := r.node(ctx, "rate-go", "--warm", "100ms")
	if err != nil {
		return err
	}
	defer g.stop()
	names = names[:0]
	for i := range gos {
		names = append(names, lode.Name(fmt.Sprintf("g%d", i)))
	}
	if err := g.deploy(ctx, "gos", golang, nil, names...); err != nil {
		return err
	}
	for i := -1; i < len(rates); i++ {
		v, err := g.sweep(ctx, names)
		if err != nil {
			return err
		}
		if i >= 0 {
			rates[i] = v
		}
		time.Sleep(400 * time.Millisecond)
	}
	r.value("cold starts a second, different functions, Go in memory", "1/s", rates, ">= 800", "2500")
	return nil
}

// sweep calls each function once and returns the calls a second.
func (s *site) sweep(ctx context.Context, names []lode.Name) (float64, error) {
	body := body1K()
	next := make(chan lode.Name, len(names))
	for _, n := range names {
		next <- n
	}
	close(next)
	errs := make([]error, runtime.NumCPU())
	var wg sync.WaitGroup
	start := time.Now()
	for i := range errs {
		wg.Go(func() {
			l := load{addr: s.addr, body: body, want: hashed(body)}
			errs[i] = l.each(ctx, next)
		})
	}
	wg.Wait()
	took := time.Since(start)
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return float64(len(names)) / took.Seconds(), nil
}

// idleMemory: 5,000 functions, each called once, then idle until their code is
// dropped.
func (r *runner) idleMemory(ctx context.Context, _, c *build.Artifact) error {
	const apps, each = 25, 200
	s, err := r.node(ctx, "idle", "--warm", "1s", "--code-cache", "1KiB")
	if err != nil {
		return err
	}
	defer s.stop()
	var all []lode.Name
	for i := range apps {
		v, err := variant(c, i+1)
		if err != nil {
			return err
		}
		names := make([]lode.Name, each)
		for j := range names {
			names[j] = lode.Name(fmt.Sprintf("f%d-%d", i, j))
		}
		if err := s.deploy(ctx, lode.Name(fmt.Sprintf("app%d", i)), v, nil, names...); err != nil {
			return err
		}
		all = append(all, names...)
	}
	if _, err := s.sweep(ctx, all); err != nil {
		return err
	}
	time.Sleep(4 * time.Second)
	if l, err := s.ListNames(ctx, api.KindFunction, api.Page{Limit: 1}); err != nil || len(l.Items) != 1 {
		return lode.Errorf(lode.Internal, "the functions are not listed: %v", err)
	}
	vals := make([]float64, r.Rounds)
	for i := range vals {
		vals[i] = float64(s.p.rss()) / (1 << 20)
		time.Sleep(100 * time.Millisecond)
	}
	r.value("5,000 functions deployed, each called once, now idle: memory of the node", "MB", vals, "<= 400 MB", "100")
	return nil
}
