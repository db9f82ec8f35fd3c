package examples_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"lode"
	"lode/cmd/spec"
)

// page reads a page of docs.
func page(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestEveryKeyIsDocumented compares docs/lode-yaml.md with the grammar, both
// ways: nested keys are documented as parent.key.
func TestEveryKeyIsDocumented(t *testing.T) {
	var schema any
	if err := json.Unmarshal(spec.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	collect(schema, "", known)
	text := page(t, "lode-yaml.md")
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\|").FindAllStringSubmatch(text, -1) {
		documented[m[1]] = true
	}
	for key := range known {
		if !documented[key] {
			t.Errorf("docs/lode-yaml.md has no row for the key %s", key)
		}
	}
	for key := range documented {
		if !known[key] {
			t.Errorf("docs/lode-yaml.md has a row for %s, which is no key", key)
		}
	}
	if len(known) < 40 {
		t.Errorf("only %d keys were found in the schema", len(known))
	}
}

// collect notes the keys below a schema. Those of the app, of a function, a
// kind, a queue and a dataset stand alone; deeper ones have their parent's name.
func collect(node any, parent string, into map[string]bool) {
	switch n := node.(type) {
	case []any:
		for _, x := range n {
			collect(x, parent, into)
		}
	case map[string]any:
		props, _ := n["properties"].(map[string]any)
		for key, sub := range props {
			name := key
			if parent != "" {
				name = parent + "." + key
			}
			into[name] = true
			below := name
			if key == "defaults" || key == "functions" || key == "agents" || key == "queues" || key == "datasets" || key == "schedule" {
				below = ""
			}
			if key == "schedule" { // {cron, zone} is described as a type
				continue
			}
			collect(sub, below, into)
		}
		for key, sub := range n {
			if key != "properties" {
				collect(sub, parent, into)
			}
		}
	}
}

// TestEveryCommandIsDocumented compares docs/cli.md with what the command's
// sources register.
func TestEveryCommandIsDocumented(t *testing.T) {
	text := page(t, "cli.md")
	sources, err := filepath.Glob("../cmd/lode/*.go")
	if err != nil {
		t.Fatal(err)
	}
	use := regexp.MustCompile(`Use:\s+"([a-z]+)`)
	flag := regexp.MustCompile(`(?:Var|VarP|String|Bool|Int|Duration)\((?:[^"\n]*, )?"([a-z-]+)"`)
	hidden := []string{"lode", "child", "worker", "acme"} // of later versions, or not for people
	commands, flags := 0, 0
	for _, file := range sources {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range use.FindAllStringSubmatch(string(b), -1) {
			commands++
			if !slices.Contains(hidden, m[1]) && !regexp.MustCompile("`lode (?:[a-z]+ )?"+m[1]+`\b`).MatchString(text) {
				t.Errorf("docs/cli.md has no command %s (%s)", m[1], file)
			}
		}
		for _, m := range flag.FindAllStringSubmatch(string(b), -1) {
			flags++
			if !strings.Contains(text, "--"+m[1]) && !slices.Contains(hidden, m[1]) {
				t.Errorf("docs/cli.md has no flag --%s (%s)", m[1], file)
			}
		}
	}
	if commands < 40 || flags < 40 {
		t.Errorf("%d commands and %d flags were found: the patterns of this test do not fit the sources", commands, flags)
	}
	registered := map[string]bool{"help": true, "version": true}
	foreign := []string{"function-name", "payload", "data-binary"} // of aws and curl
	for _, file := range sources {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range flag.FindAllStringSubmatch(string(b), -1) {
			registered[m[1]] = true
		}
	}
	for _, name := range []string{"cli.md", "cluster.md", "operations.md", "data.md", "async.md", "http.md", "functions.md", "agents.md"} {
		for _, m := range regexp.MustCompile("[ `]--([a-z][a-z-]*[a-z])").FindAllStringSubmatch(page(t, name), -1) {
			if !registered[m[1]] && !slices.Contains(foreign, m[1]) {
				t.Errorf("docs/%s has a flag --%s, which no command takes", name, m[1])
			}
		}
	}
	for _, k := range lode.Kinds() {
		if !strings.Contains(text, "`"+string(k)+"`") || !strings.Contains(page(t, "http.md"), "`"+string(k)+"`") {
			t.Errorf("docs/cli.md or docs/http.md does not say what %s means", k)
		}
	}
}

// TestEveryMetricIsDocumented compares the tables of metrics with the names in
// the sources, both ways.
func TestEveryMetricIsDocumented(t *testing.T) {
	name := regexp.MustCompile(`"(lode_[a-z_]+|faas_[a-z_]+)", "[A-Z0-9]|Name: "(lode_[a-z_]+|faas_[a-z_]+)"`)
	known := map[string]bool{}
	for _, pattern := range []string{"../node/*.go", "../internal/telemetry/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range name.FindAllStringSubmatch(string(b), -1) {
				known[m[1]+m[2]] = true
			}
		}
	}
	documented := map[string]bool{}
	for _, p := range []string{"operations.md", "cluster.md"} {
		for _, m := range regexp.MustCompile("`((?:lode|faas)_[a-z_]+)`").FindAllStringSubmatch(page(t, p), -1) {
			documented[m[1]] = true
		}
	}
	for metric := range known {
		if !documented[metric] {
			t.Errorf("neither docs/operations.md nor docs/cluster.md says what %s is", metric)
		}
	}
	for metric := range documented {
		if !known[metric] && metric != "faas_namespace" && metric != "faas_name" && metric != "faas_trigger" {
			t.Errorf("%s is documented, and no metric", metric)
		}
	}
	if len(known) < 30 {
		t.Errorf("only %d metrics were found: the pattern of this test does not fit the sources", len(known))
	}
}

// TestLinks holds the links between pages to files that are there.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#\s]+)\)`)
	for _, p := range append(pages, "../README.md", "../ARCHITECTURE.md", "../RATIONALE.md", "../VOCABULARY.md", "../CHANGELOG.md") {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(p), m[1])); err != nil {
				t.Errorf("%s: the link %s leads nowhere", p, m[1])
			}
		}
	}
}
