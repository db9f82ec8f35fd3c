package spec

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"lode"
)

// FileName is the file that a folder is asked for.
const FileName = "lode.yaml"

// Declared is what a file, or a folder without one, says. Sources are still
// paths; Complete makes a lode.App of it.
type Declared struct {
	Name      lode.Name
	Dir       string // absolute; sources and globs are relative to it
	File      string // as it was named; "" without a file
	Functions map[lode.Name]*Function
	Agents    map[lode.Name]*Function // kinds: their Agent is set
	Queues    map[lode.Name]lode.Queue
	Datasets  map[lode.Name]lode.Dataset
	// Implicit: the file names neither functions nor kinds of agents, so the
	// code's own exports do.
	Implicit bool
	// Source is the app's one source: Dir, or the file that was named.
	Source string

	env      map[string]string
	secrets  []string
	defaults *yaml.Node
	lookup   func(string) (string, bool)
}

// Function is one declared function, or kind of agents.
type Function struct {
	lode.Function
	Source string   // absolute path
	Build  []string // argv, or nil
	Line   int      // of its name in the file; 0 without a file

	consume                     lode.Consume
	run                         []string
	contract, engine, isolation string
}

// Options say where to look.
type Options struct {
	// Path is a folder, a lode.yaml, or one source file. "" is the working
	// directory.
	Path string
	// Lookup finds a variable of the deployer; nil is the environment.
	Lookup func(string) (string, bool)
	// EnvFile is read before Lookup fails; "" is .env in the folder, which
	// need not be there.
	EnvFile string
}

// Load reads what is declared at o.Path. Its error is of kind Invalid, around
// a *Problems when the file is to blame, or NotFound.
func Load(o Options) (*Declared, error) {
	d, err := locate(o.Path)
	if err != nil {
		return nil, err
	}
	lookup, err := o.variables(d.Dir)
	if err != nil {
		return nil, err
	}
	if d.File == "" {
		d.Implicit = true
		return d, d.nameIt()
	}
	b, err := os.ReadFile(d.File)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "%w", err)
	}
	p := &parser{file: shown(d.File), lookup: lookup, at: map[string]*yaml.Node{}}
	p.parse(b, d)
	if err := p.probs.asError(); err != nil {
		return nil, err
	}
	return d, d.nameIt()
}

// shown is a path as short as it can be said.
func shown(file string) string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, file); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return file
}

func newDeclared() *Declared {
	return &Declared{Functions: map[lode.Name]*Function{}, Agents: map[lode.Name]*Function{}, Queues: map[lode.Name]lode.Queue{}, Datasets: map[lode.Name]lode.Dataset{}}
}

// locate finds out whether path is a folder, a lode.yaml or a source.
func locate(path string) (*Declared, error) {
	if path == "" {
		path = "."
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "%w", err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		e := lode.Errorf(lode.NotFound, "%s: %s", path, reason(err))
		return nil, e.WithHint("name a folder, a lode.yaml or a source file; lode new NAME makes one")
	}
	d := newDeclared()
	switch ext := filepath.Ext(abs); {
	case info.IsDir():
		d.Dir, d.Source = abs, abs
		for _, name := range []string{FileName, "lode.yml"} {
			if _, err := os.Stat(filepath.Join(abs, name)); err == nil {
				d.File = filepath.Join(abs, name)
				break
			}
		}
	case ext == ".yaml" || ext == ".yml":
		d.Dir, d.File = filepath.Dir(abs), abs
		d.Source = d.Dir
	default:
		d.Dir, d.Source = filepath.Dir(abs), abs
	}
	return d, nil
}

func reason(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "no such file or folder"
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// nameIt gives an app without a name that of its folder, or of its file.
func (d *Declared) nameIt() error {
	if d.Name != "" {
		return nil
	}
	base := filepath.Base(d.Dir)
	if d.Source != d.Dir {
		if stem := strings.TrimSuffix(filepath.Base(d.Source), filepath.Ext(d.Source)); stem != "main" && stem != "index" {
			base = stem
		}
	}
	if d.Name = FixName(base); d.Name == "" {
		return lode.Errorf(lode.Invalid, "no name can be made of %q", base).WithHint("say it in lode.yaml: app: NAME")
	}
	return nil
}

// FixName bends a word into a valid name, or returns "".
func FixName(s string) lode.Name {
	if n, err := lode.ParseName(s); err == nil {
		return n
	}
	var b strings.Builder
	for _, c := range strings.ToLower(s) {
		switch {
		case c >= 'a' && c <= 'z', b.Len() > 0 && c >= '0' && c <= '9':
			b.WriteRune(c)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == 48 {
			break
		}
	}
	n, err := lode.ParseName(strings.TrimRight(b.String(), "-"))
	if err != nil {
		return ""
	}
	return n
}

// Parse checks bytes as a lode.yaml in dir. Load is Parse of what stands on
// disk; it also knows the names of folders.
func Parse(b []byte, dir string, lookup func(string) (string, bool)) (*Declared, error) {
	d := newDeclared()
	d.Dir, d.Source, d.File = dir, dir, filepath.Join(dir, FileName)
	if lookup == nil {
		lookup = func(string) (string, bool) { return "", false }
	}
	p := &parser{file: FileName, lookup: lookup, at: map[string]*yaml.Node{}}
	p.parse(b, d)
	if err := p.probs.asError(); err != nil {
		return nil, err
	}
	return d, nil
}

func (p *parser) parse(b []byte, d *Declared) {
	d.lookup = p.lookup
	root := p.document(b)
	d.Implicit = true
	if root != nil {
		p.inOrder(root)
		readObject(p, root, "lode.yaml", appFields(), d)
	}
	if len(p.probs.List) > 0 {
		p.sortProblems()
		return
	}
	p.check(d)
	p.sortProblems()
}

// inOrder moves what functions inherit (env, secrets, defaults) before them.
func (p *parser) inOrder(root *yaml.Node) {
	if root.Kind != yaml.MappingNode {
		return
	}
	var first, rest []*yaml.Node
	for i := 0; i+1 < len(root.Content); i += 2 {
		switch root.Content[i].Value {
		case "env", "secrets", "defaults":
			first = append(first, root.Content[i], root.Content[i+1])
		default:
			rest = append(rest, root.Content[i], root.Content[i+1])
		}
	}
	root.Content = append(first, rest...)
}

func (p *parser) sortProblems() {
	slices.SortStableFunc(p.probs.List, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Col - b.Col
	})
}

// readDefaults checks the defaults once, so that mistakes in them are told
// where they stand; each function reads them again.
func (p *parser) readDefaults(n *yaml.Node, d *Declared) {
	var scratch Function
	readObject(p, n, "defaults", functionFields(), &scratch)
	d.defaults = n
}

func (p *parser) readFunctions(n *yaml.Node, d *Declared) {
	d.Implicit = false
	readNames(p, n, "function", functionFields(), func(name lode.Name, key *yaml.Node, read func(*Function)) {
		f := d.base(key.Line)
		p.defaultsFor(f, d.defaults)
		read(f)
		if name != "" {
			d.Functions[name] = f
			p.own("function", name, key)
		}
	})
}

// base is a function before the file said anything about it.
func (d *Declared) base(line int) *Function {
	return &Function{Line: line, consume: lode.Consume{Size: 10}, Function: lode.Function{
		Env: maps.Clone(d.env), Secrets: slices.Clone(d.secrets),
		Retry:  lode.Retry{Attempts: 3, First: time.Second, Max: 5 * time.Minute},
		Egress: lode.Egress{Mode: "public"},
		Limits: lode.Limits{Memory: 256 * mib, Start: 30 * time.Second, Total: 60 * time.Second, Idle: 5 * time.Minute, Each: 1, QueueMax: 1000,
			Body: 6 * mib, Tmp: 512 * mib, Log: 256 * kib, CPU: 1, OutputMax: 6 * mib},
	}}
}

func (p *parser) readQueues(n *yaml.Node, d *Declared) {
	readNames(p, n, "queue", queueFields(), func(name lode.Name, key *yaml.Node, read func(*lode.Queue)) {
		q := lode.Queue{Keep: 7 * day, Deliver: 5, Visible: 30 * time.Second, Max: 1_000_000}
		read(&q)
		if name != "" {
			d.Queues[name] = q
			p.own("queue", name, key)
		}
	})
}

func (p *parser) readDatasets(n *yaml.Node, d *Declared) {
	readNames(p, n, "dataset", datasetFields(), func(name lode.Name, key *yaml.Node, read func(*lode.Dataset)) {
		ds := lode.Dataset{Shard: 32 * mib, Copies: 2, Keep: 10}
		read(&ds)
		if ds.Records == "" {
			ds.Records = RecordsOf(ds.From)
		}
		if name != "" {
			d.Datasets[name] = ds
			p.own("dataset", name, key)
		}
	})
}

// RecordsOf guesses the record form from suffixes: those of CSV and NDJSON if
// all files have them, else lines.
func RecordsOf(files []string) lode.Records {
	form := lode.Records("")
	for _, f := range files {
		r := lode.RecordsLines
		switch strings.ToLower(filepath.Ext(f)) {
		case ".csv":
			r = lode.RecordsCSV
		case ".ndjson", ".jsonl":
			r = lode.RecordsNDJSON
		}
		if form != "" && r != form {
			return lode.RecordsLines
		}
		form = r
	}
	if form == "" {
		return lode.RecordsLines
	}
	return form
}

// own remembers where a name was declared; one name space holds for all.
func (p *parser) own(kind string, name lode.Name, key *yaml.Node) {
	if first := p.at[string(name)]; first != nil {
		p.fail(key, "functions, agents, queues and datasets share one name space; the first is in line "+itoa(first.Line), "%s: the name is taken", p.where())
		return
	}
	p.at[string(name)] = key
}
