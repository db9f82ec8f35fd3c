package build

import (
	"context"
	"strings"
	"testing"

	"lode/sdk/abi/abitest"
)

// TestBindings calls a queue through env, as a parameter and as an import: the
// bundler may rename either.
func TestBindings(t *testing.T) {
	skipUnderRace(t)
	for name, source := range map[string]string{
		"parameter":           `export default { fetch(r, env) { return new Response(typeof env.orders.send); } };`,
		"beside an import":    `import { secret } from "lode"; secret; export default { fetch(r, env) { return new Response(typeof env.orders.send); async () => env.orders.send(secret("S")); } };`,
		"beside another env":  `const env = 1; export default { fetch(r, env) { env.orders.send; async () => env.orders.send(1); return new Response(typeof env.orders.send); } };`,
		"imported":            `import { env } from "lode"; export default { fetch(r) { async () => env.orders.send(1); return new Response(typeof env.orders.send); } };`,
		"imported by another": `import { env } from "cloudflare:workers"; export default { fetch(r) { async () => env.orders.send(1); return new Response(typeof env.orders.send); } };`,
		"both":                `import { env as all } from "lode"; export default { fetch(r, env) { async () => env.orders.send(all); return new Response(typeof all.orders.send); } };`,
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(source, "send(") {
				source = strings.Replace(source, "return", "async () => env.orders.send(1); return", 1)
			}
			a := build(t, Source{Path: folder(t, "x", map[string]string{"index.js": source})})
			g, err := abitest.Load(context.Background(), a.Wasm)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close(context.Background())
			r, err := g.Invoke(context.Background(), abitest.Call{Head: map[string]string{":kind": "http", ":method": "GET", ":path": "/", "host": "h"}, Ops: scriptOps})
			if err != nil || string(r.Body) != "function" {
				t.Errorf("%q %+v %v", r.Body, r.Fail, err)
			}
		})
	}
}
