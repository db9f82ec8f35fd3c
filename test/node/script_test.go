//go:build linux

package node

import (
	"path/filepath"
	"testing"
)

// TestScriptDepth: programs in JavaScript may recurse, and may await in helpers
// of helpers.
func TestScriptDepth(t *testing.T) {
	home := t.TempDir()
	write(t, filepath.Join(home, "deep", "index.js"), `
const deep = (n) => n === 0 ? 0 : 1 + deep(n - 1);
async function status(url) { try { return (await fetch(url)).status } catch (e) { return "no" } }
export default { async fetch(req) {
  if (new URL(req.url).pathname === "/fetch") return new Response("" + await status("http://127.0.0.1:1/"));
  return new Response("" + deep(700));
} };
`)
	p := start(t, filepath.Join(home, "data"))
	p.must("", "deploy", filepath.Join(home, "deep"))
	for path, want := range map[string]string{"/fn/deep": "700", "/fn/deep/fetch": "no"} {
		if status, body, _ := p.get(path); status != 200 || body != want {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}
