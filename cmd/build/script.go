package build

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/evanw/esbuild/pkg/api"

	"lode"
	"lode/sdk"
)

// entries are the files that a script's folder may begin with, best first.
var entries = []string{"index.ts", "index.tsx", "index.mts", "index.js", "index.mjs", "index.jsx", "src/index.ts", "src/index.js", "main.ts", "main.js", "worker.ts", "worker.js"}

// entry finds the file that a folder's bundle begins with; "" if there is
// none. main in package.json comes first.
func (b *builder) entry() (string, error) {
	if text, err := os.ReadFile(filepath.Join(b.root, "package.json")); err == nil {
		var p struct{ Main, Module string }
		if err := json.Unmarshal(text, &p); err != nil {
			return "", lode.Errorf(lode.Invalid, "package.json: %w", err)
		}
		for _, f := range []string{p.Module, p.Main} {
			if f == "" {
				continue
			}
			if info, err := os.Stat(filepath.Join(b.root, f)); err == nil && info.Mode().IsRegular() {
				return filepath.Join(b.root, f), nil
			}
		}
	}
	for _, f := range entries {
		if info, err := os.Stat(filepath.Join(b.root, f)); err == nil && info.Mode().IsRegular() {
			return filepath.Join(b.root, f), nil
		}
	}
	return "", nil
}

func scriptKind(entry string) string {
	if strings.Contains(filepath.Ext(entry), "ts") {
		return "ts"
	}
	return "js"
}

// script bundles JavaScript or TypeScript, and puts the bundle into a copy of
// the JavaScript engine.
func (b *builder) script(ctx context.Context, _ string) (*Artifact, error) {
	entry := b.file
	if entry == "" {
		var err error
		if entry, err = b.entry(); err != nil {
			return nil, err
		}
	}
	r := api.Build(api.BuildOptions{
		EntryPoints: []string{entry}, AbsWorkingDir: b.root, Outfile: filepath.Join(b.root, "lode-bundle.js"),
		Bundle: true, Write: false, Metafile: true, LogLevel: api.LogLevelSilent,
		Format: api.FormatESModule, Platform: api.PlatformNeutral, Target: api.ES2022, Charset: api.CharsetUTF8,
		MainFields: []string{"worker", "browser", "module", "main"}, Conditions: []string{"workerd", "worker", "browser", "module"},
		Sourcemap: api.SourceMapExternal, SourcesContent: api.SourcesContentExclude, LegalComments: api.LegalCommentsNone,
		Define:  map[string]string{"process.env.NODE_ENV": `"production"`},
		Loader:  map[string]api.Loader{".txt": api.LoaderText, ".html": api.LoaderText, ".sql": api.LoaderText, ".wasm": api.LoaderBinary},
		Plugins: []api.Plugin{{Name: "lode", Setup: virtual}},
	})
	if err := ctx.Err(); err != nil {
		return nil, lode.Errorf(lode.Cancelled, "the build of %s: %w", filepath.Base(b.root), err)
	}
	if len(r.Errors) > 0 {
		return nil, scriptError(filepath.Base(b.root), r.Errors)
	}
	var code, maps []byte
	for _, f := range r.OutputFiles {
		if strings.HasSuffix(f.Path, ".map") {
			maps = f.Contents
		} else if strings.HasSuffix(f.Path, ".js") {
			code = f.Contents
		}
	}
	wasm, err := script(code, maps)
	if err != nil {
		return nil, err
	}
	return &Artifact{Wasm: wasm, Watch: b.inputs(r.Metafile)}, nil
}

// script is the engine with a program in it.
func script(code, maps []byte) ([]byte, error) {
	engine, err := sdk.QuickJS()
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "the JavaScript engine: %w", err)
	}
	prelude, err := sdk.Prelude(needs(code))
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "the JavaScript engine: %w", err)
	}
	var section []byte
	for _, part := range [][]byte{[]byte(prelude), code, maps} {
		section = binary.LittleEndian.AppendUint32(section, uint32(len(part)))
		section = append(section, part...)
	}
	return addSection(engine, "lode.init", section), nil
}

var envUse = regexp.MustCompile(`\b(?:lode_)?env\d*\s*(?:\.\s*([A-Za-z_]\w*)|\[\s*"([A-Za-z_][\w-]*)"\s*\])\s*\??\.\s*([A-Za-z_]\w*)\s*\(`)

// stringMethods are called on variables, which are strings.
var stringMethods = strings.Fields("at charAt charCodeAt codePointAt concat endsWith includes indexOf lastIndexOf localeCompare match matchAll normalize padEnd padStart " +
	"repeat replace replaceAll search slice split startsWith substring substr toLowerCase toString toUpperCase trim trimEnd trimStart valueOf hasOwnProperty")

// needs lists the names that a bundle uses as functions, queues or datasets:
// env.NAME with one of their methods called on it, where env may carry a digit
// that the bundler gave it. A variable or a secret of that name wins at run
// time.
func needs(code []byte) []string {
	var out []string
	for _, m := range envUse.FindAllSubmatch(code, -1) {
		name := string(m[1]) + string(m[2])
		if !slices.Contains(stringMethods, string(m[3])) && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// exported are the names of the modules that the engine itself answers.
var exported = map[string]string{
	"lode":               "LodeError, Agent, DurableObject, agent, call, callHandler, send, receive, run, group, queue, dataset, service, secret, config, self, waitUntil, recode",
	"cloudflare:workers": "waitUntil, WorkerEntrypoint, DurableObject",
}

// virtual resolves the imports that the engine itself answers.
func virtual(p api.PluginBuild) {
	p.OnResolve(api.OnResolveOptions{Filter: `^(lode|cloudflare:workers)$`}, func(a api.OnResolveArgs) (api.OnResolveResult, error) {
		return api.OnResolveResult{Path: a.Path, Namespace: "lode"}, nil
	})
	p.OnLoad(api.OnLoadOptions{Filter: `.*`, Namespace: "lode"}, func(a api.OnLoadArgs) (api.OnLoadResult, error) {
		text := "const lode_env = globalThis.__lode_sdk.env;\nexport {lode_env as env};\nexport const {" + exported[a.Path] + "} = globalThis.__lode_sdk;\n"
		return api.OnLoadResult{Contents: &text, Loader: api.LoaderJS}, nil
	})
}

// builtins are Node's own modules that people import most.
var builtins = strings.Fields("assert async_hooks buffer child_process cluster crypto dgram dns events fs fs/promises http http2 https module net os path " +
	"perf_hooks process querystring readline stream stream/promises string_decoder timers tls tty url util v8 vm worker_threads zlib")

// scriptError is esbuild's complaints as file:line:column: text.
func scriptError(name string, list []api.Message) error {
	var text strings.Builder
	hint := ""
	for i, m := range list {
		if i == 10 {
			fmt.Fprintf(&text, "\nand %d more", len(list)-i)
			break
		}
		text.WriteByte('\n')
		if l := m.Location; l != nil {
			fmt.Fprintf(&text, "%s:%d:%d: ", l.File, l.Line, l.Column+1)
		}
		text.WriteString(m.Text)
		if l := m.Location; l != nil && l.LineText != "" {
			fmt.Fprintf(&text, "\n    %s", strings.TrimSpace(l.LineText))
		}
		if h := scriptHint(m.Text); hint == "" {
			hint = h
		}
	}
	return lode.Errorf(lode.Invalid, "%s does not build:%s", name, text.String()).WithHint("%s", hint)
}

var quoted = regexp.MustCompile(`"([^"]+)"`)

func scriptHint(text string) string {
	m := quoted.FindAllStringSubmatch(text, -1)
	switch {
	case len(m) == 0:
	case strings.HasPrefix(text, "Could not resolve"):
		if name := m[0][1]; strings.HasPrefix(name, "node:") || slices.Contains(builtins, name) {
			return fmt.Sprintf("%s is part of Node, which comes in a later version: install a package that replaces it", name)
		} else if !strings.HasPrefix(name, ".") && !strings.HasPrefix(name, "/") {
			return "npm install " + name
		}
	case strings.HasPrefix(text, "No matching export") && m[len(m)-1][1] == "Agent":
		return `import { Agent } from "lode"; cloudflare:workers has DurableObject`
	}
	return ""
}

// inputs lists the files of a bundle, and package.json.
func (b *builder) inputs(metafile string) []string {
	var meta struct{ Inputs map[string]json.RawMessage }
	if json.Unmarshal([]byte(metafile), &meta) != nil {
		return []string{b.root}
	}
	var out []string
	for f := range meta.Inputs {
		if strings.HasPrefix(f, "lode:") || strings.Contains(filepath.ToSlash(f), "node_modules/") {
			continue
		}
		if !filepath.IsAbs(f) {
			f = filepath.Join(b.root, f)
		}
		out = append(out, f)
	}
	if p := filepath.Join(b.root, "package.json"); b.any("package.json") {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}
