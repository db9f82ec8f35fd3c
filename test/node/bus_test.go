//go:build linux

package node

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lode"
	"lode/api"
)

// TestDamagedBus flips a byte in what the node knows about its functions. A
// revision that cannot be read takes its own function away, by name, and
// nothing else; a register that cannot be read keeps the node from starting
// with less than it had.
func TestDamagedBus(t *testing.T) {
	home := t.TempDir()
	dir := filepath.Join(home, "data")
	p := start(t, dir)
	e := guestC(t, echo)
	if err := p.upload(e.Wasm); err != nil {
		t.Fatal(err)
	}
	names := []lode.Name{"one", "two", "three"}
	for _, n := range names {
		f := function(e)
		f.Env = map[string]string{"NAME": string(n)}
		if _, err := p.c.Deploy(t.Context(), app(n, n, f), api.DeployOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	p.stop()
	damaged := func(table, record string) string {
		t.Helper()
		to := filepath.Join(home, table)
		copyDir(t, dir, to)
		found, _ := filepath.Glob(filepath.Join(to, "bus", "store", "jetstream", "*", "streams", "KV_"+table, "msgs", "1.blk"))
		if len(found) != 1 {
			t.Fatalf("table %s is in %v", table, found)
		}
		b, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.LastIndex(b, []byte(record))
		if at < 0 || at+len(record)+100 > len(b) {
			t.Fatalf("table %s has no record %s", table, record)
		}
		b[at+len(record)+90] ^= 0x40 // in its value
		rewrite(t, found[0], b)
		return to
	}

	p = start(t, damaged("revisions", "revisions.default.two."))
	lost := 0
	for _, n := range names {
		status, body, head := p.post("/fn/"+string(n), "x")
		if status == 200 && body == "x" {
			continue
		}
		lost++
		problemOf(t, status, body, head, lode.Damaged)
		f := function(e)
		f.Env = map[string]string{"NAME": string(n), "AGAIN": "1"}
		if _, err := p.c.Deploy(t.Context(), app(n, n, f), api.DeployOptions{}); err != nil {
			t.Errorf("another deploy of %s: %v", n, err)
		}
		if status, body, _ := p.post("/fn/"+string(n), "x"); status != 200 || body != "x" {
			t.Errorf("%s after another deploy: %d %s", n, status, body)
		}
	}
	if lost != 1 {
		t.Errorf("one damaged revision took %d functions away", lost)
	}
	p.kill()

	out, code := p.tryStart(damaged("catalog", "catalog.app.default.two"))
	if code != lode.Damaged.ExitCode() || !strings.Contains(out, "table catalog is damaged") {
		t.Errorf("code %d: %s", code, out)
	}
}
