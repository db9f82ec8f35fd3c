package spec

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // zones are checked the same on every machine

	"go.yaml.in/yaml/v3"

	"lode"
)

func itoa(n int) string { return strconv.Itoa(n) }

// checkSource checks the form of a source; whether it is there is asked later.
func checkSource(s string) error {
	switch {
	case strings.HasPrefix(s, "oci:"):
		return wrong("name a folder, a source file or a .wasm", "this version of Lode runs no container images yet")
	case strings.HasSuffix(s, ".zip"):
		return wrong("name the folder that the archive was made of", "this version of Lode takes no .zip archives yet")
	case strings.Contains(s, "://"):
		return wrong("fetch it first, then name the file", "a source is a path, not a URL: %q", clip(s))
	case filepath.IsAbs(s):
		return wrong("write it relative to lode.yaml, as in ./src", "%q is an absolute path", clip(s))
	}
	return nil
}

func checkFrom(s string) error {
	switch {
	case strings.Contains(s, "://"):
		return wrong("fetch the files first, or pipe them: ... | lode data put NAME -", "this version of Lode imports from no URL yet: %q", clip(s))
	}
	if _, err := filepath.Match(strings.ReplaceAll(s, "**", "*"), "x"); err != nil {
		return wrong("", "%q is not a glob", clip(s))
	}
	return nil
}

func checkZone(s string) error {
	if _, err := time.LoadLocation(s); err != nil || s == "Local" {
		return wrong("want an IANA name such as Europe/Vienna", "there is no time zone %q", clip(s))
	}
	return nil
}

// check looks at what only the whole file shows.
func (p *parser) check(d *Declared) {
	mux := http.NewServeMux()
	taken := map[string]lode.Name{}
	for _, name := range slices.Sorted(maps.Keys(d.Functions)) {
		f, key := d.Functions[name], p.at[string(name)]
		p.path = []string{"functions", string(name)}
		p.checkFunction(d, name, f, key)
		for _, r := range f.Routes {
			if other, twice := taken[r]; twice {
				p.failAt(key, wrong("", "the route %q belongs to %s already", r, other))
				continue
			}
			taken[r] = name
			if _, err := safely(func() (bool, error) { mux.Handle(r, http.NotFoundHandler()); return true, nil }); err != nil {
				p.failAt(key, wrong("make one of them more specific than the other in every part", "the route %q conflicts with another: %s", r, patternError(err)))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.Agents)) {
		p.path = []string{"agents", string(name)}
		p.checkKind(d, name, d.Agents[name], p.at[string(name)])
	}
	p.path = nil
}

func (p *parser) checkFunction(d *Declared, name lode.Name, f *Function, key *yaml.Node) {
	if f.consume.Queue != "" {
		c := f.consume
		f.Queue = &c
		if f.Retry.Dead == c.Queue {
			p.failAt(key, wrong("", "retry.dead is the queue that it consumes"))
		}
	} else if f.consume != (lode.Consume{Size: 10}) {
		p.failAt(key, wrong("name one: queue: NAME", "batch has no queue to take from"))
	}
	if f.CORS != nil && len(f.CORS.Origins) == 0 {
		f.CORS.Origins = []string{"*"}
	}
	if f.Access == "" {
		f.Access = lode.AccessToken
		if len(f.Routes) > 0 {
			f.Access = lode.AccessPublic
		}
	}
	if f.Access == lode.AccessInternal && len(f.Routes) > 0 {
		p.failAt(key, wrong("remove the routes, or the access", "an internal function has no public door, but there are routes"))
	}
	if l := f.Limits; l.ScaleMax > 0 && l.ScaleMin > l.ScaleMax {
		p.failAt(key, wrong("", "scale.min is %d, over scale.max, which is %d", l.ScaleMin, l.ScaleMax))
	}
	if f.Retry.First > f.Retry.Max {
		p.failAt(key, wrong("", "retry.first is %s, over retry.max, which is %s", SpanString(f.Retry.First), SpanString(f.Retry.Max)))
	}
	if slices.Equal(f.OKExit, []int{0}) {
		f.OKExit = nil
	}
	p.checkSecrets(f, key)
	p.checkCode(d, name, f, key)
}

func (p *parser) checkSecrets(f *Function, key *yaml.Node) {
	for _, s := range f.Secrets {
		if _, both := f.Env[s]; both {
			p.failAt(key, wrong("", "%s is both a variable and a secret", s))
		}
	}
}

// checkCode settles source, run and contract.
func (p *parser) checkCode(d *Declared, name lode.Name, f *Function, key *yaml.Node) {
	switch f.contract {
	case "handler", "command":
		f.Contract = lode.Contract(f.contract)
	}
	if len(f.run) > 0 {
		f.Args = f.run[1:]
		if f.Contract == lode.ContractHandler {
			p.failAt(key, wrong("leave out one of them", "run is for commands, and contract says handler"))
		}
		f.Contract = lode.ContractCommand
		if f.Source == "" {
			if !strings.HasSuffix(f.run[0], ".wasm") {
				p.failAt(key, wrong("build it for WASI and write run: [./"+filepath.Base(f.run[0])+".wasm, ...]; or give its source", "this version of Lode runs no native programs such as %q yet", clip(f.run[0])))
				return
			}
			f.Source = f.run[0]
		}
	}
	if f.Source == "" {
		f.Source = defaultSource(d, name)
	} else {
		f.Source = filepath.Join(d.Dir, filepath.FromSlash(f.Source))
	}
	if rel, err := filepath.Rel(d.Dir, f.Source); err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		p.failAt(key, wrong("move it below the folder of lode.yaml, or lode.yaml up", "the source %s is outside the app's folder", rel))
	}
}

// SourceSuffixes are the suffixes of files that are a source by themselves.
func SourceSuffixes() []string { return []string{".ts", ".js", ".mjs", ".go", ".c", ".wasm"} }

// defaultSource is ./NAME, ./NAME.SUFFIX, or the app's one source.
func defaultSource(d *Declared, name lode.Name) string {
	own := filepath.Join(d.Dir, string(name))
	if info, err := os.Stat(own); err == nil && info.IsDir() {
		return own
	}
	for _, ext := range SourceSuffixes() {
		if info, err := os.Stat(own + ext); err == nil && info.Mode().IsRegular() {
			return own + ext
		}
	}
	return d.Source
}

// Globs lists the files of a dataset's from, in order, without repetition.
// "**" stands for any number of folders. Files whose name begins with a dot
// are left out unless they are named.
func Globs(dir string, from []string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	for _, pattern := range from {
		files, err := glob(dir, pattern)
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, lode.Errorf(lode.NotFound, "no file matches %s", pattern).WithHint("paths are relative to %s", dir)
		}
		for _, f := range files {
			if !seen[f] {
				seen[f] = true
				out = append(out, f)
			}
		}
	}
	return out, nil
}

func glob(dir, pattern string) ([]string, error) {
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(dir, filepath.FromSlash(pattern))
	}
	if !strings.ContainsAny(pattern, "*?[") {
		return walk(pattern, func(string) bool { return true })
	}
	fixed := pattern[:strings.IndexAny(pattern, "*?[")]
	root := filepath.Dir(fixed + "x")
	parts := strings.Split(filepath.ToSlash(strings.TrimPrefix(pattern, root)), "/")
	return walk(root, func(file string) bool {
		return match(parts, strings.Split(filepath.ToSlash(strings.TrimPrefix(file, root)), "/"))
	})
}

// match compares path elements with pattern elements.
func match(pattern, path []string) bool {
	for len(pattern) > 0 {
		if pattern[0] == "**" {
			for i := 0; i <= len(path); i++ {
				if match(pattern[1:], path[i:]) {
					return true
				}
			}
			return false
		}
		if len(path) == 0 {
			return false
		}
		if ok, err := filepath.Match(pattern[0], path[0]); !ok || err != nil {
			return false
		}
		pattern, path = pattern[1:], path[1:]
	}
	return len(path) == 0
}

// walk lists the regular files at or below root that keep keeps.
func walk(root string, keep func(string) bool) ([]string, error) {
	info, err := os.Stat(root)
	if err != nil {
		return nil, nil // no match
	}
	if !info.IsDir() {
		return []string{root}, nil
	}
	var out []string
	err = filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path != root && strings.HasPrefix(e.Name(), "."):
			if e.IsDir() {
				return filepath.SkipDir
			}
		case e.Type().IsRegular() && keep(path):
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "%w", err)
	}
	return out, nil
}
