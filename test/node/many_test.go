//go:build linux

package node

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// TestThousand restarts a node with 1,000 functions: each is there, and
// answers.
func TestThousand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	p := start(t, dir)
	e := guestC(t, echo)
	if err := p.upload(e.Wasm); err != nil {
		t.Fatal(err)
	}
	big := lode.App{Name: "thousand", Functions: map[lode.Name]lode.Function{}}
	for i := range 1000 {
		f := function(e)
		f.Env = map[string]string{"I": fmt.Sprint(i)}
		f.Routes = []string{fmt.Sprintf("GET /r%d/{x}", i)}
		big.Functions[lode.Name(fmt.Sprintf("f%d", i))] = f
	}
	began := time.Now()
	if _, err := p.c.Deploy(t.Context(), big, api.DeployOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("deploy of 1,000 functions: %v", time.Since(began).Round(time.Millisecond))
	check := func() {
		t.Helper()
		items, err := api.All(func(pg api.Page) (api.List[api.Item], error) {
			return p.c.ListNames(t.Context(), api.KindFunction, pg)
		})
		if err != nil || len(items) != 1000 {
			t.Fatalf("%d functions, %v", len(items), err)
		}
		for i := 0; i < 1000; i += 37 {
			if status, body, _ := p.post(fmt.Sprintf("/fn/f%d", i), "hello"); status != 200 || body != "hello" {
				t.Fatalf("f%d: %d %s", i, status, body)
			}
			if status, _, _ := p.get(fmt.Sprintf("/r%d/x", i)); status != 200 {
				t.Fatalf("route of f%d: %d", i, status)
			}
		}
	}
	check()
	for _, how := range []struct {
		name string
		end  func()
	}{{"stop", func() { p.stop() }}, {"kill", func() { p.kill() }}} {
		how.end()
		began := time.Now()
		p = start(t, dir)
		t.Logf("after %s: ready in %v", how.name, time.Since(began).Round(time.Millisecond))
		status, _, _ := p.post("/fn/f999", "x")
		t.Logf("after %s: first answer (%d) in %v", how.name, status, time.Since(began).Round(time.Millisecond))
		check()
	}
}
