package bench

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"lode"
	"lode/api"
	"lode/cmd/build"
)

// sources are the guests and the plain programs, so that a bench needs nothing
// but the binary and compilers.
//
//go:embed guests plain
var sources embed.FS

// unpack writes one folder of sources below the scratch folder and returns its
// path. Guests named *.go.txt are not needed: the folder is no module.
func (r *runner) unpack(name string) (string, error) {
	to := filepath.Join(r.dir, name)
	sub, err := fs.Sub(sources, name)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return "", err
	}
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	return to, os.CopyFS(to, sub)
}

// guest builds one of the guests.
func (r *runner) guest(ctx context.Context, name string) (*build.Artifact, error) {
	dir, err := r.unpack("guests/" + name)
	if err != nil {
		return nil, err
	}
	as, err := build.Build(ctx, build.Source{Path: dir, Name: "guest"})
	if err != nil {
		return nil, err
	}
	return &as[0], nil
}

// compileC compiles one of the plain programs for this machine.
func (r *runner) compileC(ctx context.Context, name string, libs ...string) (string, error) {
	dir, err := r.unpack("plain")
	if err != nil {
		return "", err
	}
	out := filepath.Join(r.dir, strings.TrimSuffix(name, ".c"))
	for _, cc := range []string{"clang", "cc"} {
		if _, err := exec.LookPath(cc); err != nil {
			continue
		}
		args := append([]string{"-O3", "-march=native", "-pthread", "-o", out, filepath.Join(dir, name)}, libs...)
		b, err := exec.CommandContext(ctx, cc, args...).CombinedOutput()
		if err != nil {
			return "", lode.Errorf(lode.Internal, "%s %s: %s", cc, name, b)
		}
		return out, nil
	}
	return "", lode.Errorf(lode.Unavailable, "this bench needs a C compiler").WithHint("apt-get install clang")
}

// site is a node in a process of its own.
type site struct {
	*api.Client
	p    *process
	addr string // host:port of the gateway
	dir  string
	down bool // it was killed or stopped
}

// node starts a node on a free port with its data under the scratch folder.
func (r *runner) node(ctx context.Context, dir string, flags ...string) (*site, error) {
	port, err := freePorts()
	if err != nil {
		return nil, err
	}
	return r.nodeAt(ctx, dir, port, flags...)
}

// nodeAt starts a node on a port and the two behind it.
func (r *runner) nodeAt(ctx context.Context, dir string, port int, flags ...string) (*site, error) {
	dir = filepath.Join(r.dir, dir)
	p, err := r.launch(ctx, append([]string{"up", "-d", dir, "--port", fmt.Sprint(port)}, flags...)...)
	if err != nil {
		return nil, err
	}
	s := &site{p: p, addr: fmt.Sprintf("127.0.0.1:%d", port), dir: dir}
	var token []byte
	if err = s.ready(ctx); err == nil {
		token, err = os.ReadFile(filepath.Join(dir, "admin.token"))
	}
	if err == nil {
		s.Client, err = api.New(api.Config{URL: "http://" + s.addr, Token: strings.TrimSpace(string(token))})
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	return s, nil
}

func (s *site) ready(ctx context.Context) error {
	var err error
	for range 800 {
		var resp *http.Response
		if resp, err = http.Get("http://" + s.addr + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(25 * time.Millisecond):
		}
	}
	return lode.Errorf(lode.Deadline, "the node at %s is not ready: %w", s.addr, err)
}

func (s *site) stop() {
	if s != nil && !s.down {
		s.down = true
		s.p.stop()
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// deploy uploads an artifact and deploys it under each name.
func (s *site) deploy(ctx context.Context, app lode.Name, a *build.Artifact, edit func(lode.Name, *lode.Function), names ...lode.Name) error {
	has, err := s.HasBlob(ctx, a.Digest)
	if err != nil {
		return err
	}
	if !has {
		if err := s.PutBlob(ctx, a.Digest, int64(len(a.Wasm)), strings.NewReader(string(a.Wasm))); err != nil {
			return err
		}
	}
	spec := lode.App{Name: app, Functions: map[lode.Name]lode.Function{}}
	for _, name := range names {
		f := function(a)
		if edit != nil {
			edit(name, &f)
		}
		spec.Functions[name] = f
	}
	_, err = s.Deploy(ctx, spec, api.DeployOptions{})
	return err
}

// function is the spec of an artifact with everything at its default.
func function(a *build.Artifact) lode.Function {
	return lode.Function{Artifact: a.Digest, Size: int64(len(a.Wasm)), Language: a.Language, Contract: a.Contract, Access: lode.AccessToken,
		Retry:  lode.Retry{Attempts: 3, First: time.Second, Max: 5 * time.Minute},
		Egress: lode.Egress{Mode: "public"},
		Limits: lode.Limits{Memory: 256 << 20, Start: 30 * time.Second, Total: time.Minute, Idle: 5 * time.Minute, Each: 1, QueueMax: 1000, Body: 6 << 20, Tmp: 512 << 20,
			Log: 256 << 10, CPU: 1, OutputMax: 6 << 20}}
}
