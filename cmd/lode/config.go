package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"lode"
	"lode/api"
)

// Where things are. A value is taken from the flag, else from LODE_*, else
// from the context, else from the node that was started last on this machine,
// else from the default data folder.
//
//	config   $LODE_CONFIG, else ~/.config/lode/config.yaml
//	data     $LODE_DIR, else /var/lib/lode for root, else ~/.local/share/lode
//	current  ~/.local/state/lode/current: the node started last, see current

// configFile is ~/.config/lode/config.yaml.
type configFile struct {
	Current  string                `yaml:"current,omitempty"`
	Contexts map[string]*savedNode `yaml:"contexts,omitempty"`
}

// savedNode is one context: a node with a way in.
type savedNode struct {
	URL       string `yaml:"url,omitempty" json:"url"`
	Token     string `yaml:"token,omitempty" json:"-"`
	Namespace string `yaml:"namespace,omitempty" json:"namespace,omitempty"`
}

// current is the pointer that lode up and lode dev leave for later commands:
// one JSON object, removed when the node stops. The nodes that were started
// before it and still run are in it too, the newest first.
type current struct {
	URL       string    `json:"url"`
	Dir       string    `json:"dir"`
	TokenFile string    `json:"token_file"`
	PID       int       `json:"pid"`
	Others    []current `json:"others,omitempty"`
}

func (c *cli) home(xdg, fallback string) string {
	if v := c.getenv(xdg); v != "" {
		return filepath.Join(v, "lode")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = os.TempDir()
	}
	return filepath.Join(home, fallback, "lode")
}

func (c *cli) configPath() string {
	if p := c.getenv("LODE_CONFIG"); p != "" {
		return p
	}
	return filepath.Join(c.home("XDG_CONFIG_HOME", ".config"), "config.yaml")
}

// dataDir is where lode up keeps a node's data if nothing else is said.
func (c *cli) dataDir() string {
	if p := c.getenv("LODE_DIR"); p != "" {
		return p
	}
	if runtime.GOOS == "linux" && os.Geteuid() == 0 {
		return "/var/lib/lode"
	}
	return c.home("XDG_DATA_HOME", ".local/share")
}

func (c *cli) currentPath() string {
	return filepath.Join(c.home("XDG_STATE_HOME", ".local/state"), "current")
}

func (c *cli) readConfig() (*configFile, error) {
	cf := &configFile{Contexts: map[string]*savedNode{}}
	b, err := os.ReadFile(c.configPath())
	if errors.Is(err, fs.ErrNotExist) {
		return cf, nil
	}
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "config: %w", err)
	}
	if err := yaml.Unmarshal(b, cf); err != nil {
		return nil, lode.Errorf(lode.Invalid, "%s: %w", c.configPath(), err).WithHint("mend it, or remove it and use lode login")
	}
	if cf.Contexts == nil {
		cf.Contexts = map[string]*savedNode{}
	}
	return cf, nil
}

// writeConfig replaces the file in one step; it holds tokens.
func (c *cli) writeConfig(cf *configFile) error {
	b, err := yaml.Marshal(cf)
	if err != nil {
		return lode.Errorf(lode.Internal, "config: %w", err)
	}
	return writePrivate(c.configPath(), b)
}

func writePrivate(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return lode.Errorf(lode.Invalid, "%w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".lode-*") // 0600
	if err != nil {
		return lode.Errorf(lode.Invalid, "%w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return lode.Errorf(lode.Full, "write %s: %w", path, err)
	}
	return nil
}

// setCurrent writes the pointer and returns what takes the node out of it.
func (c *cli) setCurrent(cur current) func() {
	if err := c.writeRunning(append([]current{cur}, c.running()...)); err != nil {
		c.hint("later commands will not find this node by themselves: %v", err)
		return func() {}
	}
	return func() {
		rest := slices.DeleteFunc(c.running(), func(n current) bool { return n.PID == cur.PID && n.URL == cur.URL })
		if err := c.writeRunning(rest); err != nil {
			c.hint("%s still names this node: %v", c.currentPath(), err)
		}
	}
}

// writeRunning writes the pointer for the nodes that run, the newest first.
func (c *cli) writeRunning(nodes []current) error {
	if len(nodes) == 0 {
		if err := os.Remove(c.currentPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	top := nodes[0]
	top.Others = nodes[1:]
	b, err := json.Marshal(top)
	if err != nil {
		return err
	}
	return writePrivate(c.currentPath(), append(b, '\n'))
}

// running lists the nodes that this user started here and that still run, the
// newest first.
func (c *cli) running() []current {
	b, err := os.ReadFile(c.currentPath())
	var top current
	if err != nil || json.Unmarshal(b, &top) != nil {
		return nil
	}
	all := append([]current{top}, top.Others...)
	all[0].Others = nil
	return slices.DeleteFunc(all, func(n current) bool { return n.URL == "" || !alive(n.PID) })
}

// readCurrent finds the node that was started last, if one still runs.
func (c *cli) readCurrent() (cur current, ok bool) {
	if all := c.running(); len(all) > 0 {
		return all[0], true
	}
	return cur, false
}

// alive reports whether a process is there; one of another user is.
func alive(pid int) bool {
	if pid <= 0 {
		return false
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	err = p.Signal(syscall.Signal(0))
	return err == nil || errors.Is(err, fs.ErrPermission)
}

// target is where commands go.
func (c *cli) target() (api.Config, error) {
	cf, err := c.readConfig()
	if err != nil {
		return api.Config{}, err
	}
	named := first(c.flags.context, c.getenv("LODE_CONTEXT"))
	ctx, known := cf.Contexts[first(named, cf.Current)]
	if named != "" && !known {
		return api.Config{}, noContext(cf, named)
	}
	if ctx == nil {
		ctx = &savedNode{}
	}
	out := api.Config{Namespace: lode.Namespace(first(c.flags.namespace, c.getenv("LODE_NAMESPACE"), ctx.Namespace))}
	if out.Namespace != "" {
		if _, err := lode.ParseName(string(out.Namespace)); err != nil {
			return out, lode.Errorf(lode.Invalid, "namespace: %w", err)
		}
	}
	out.URL, out.Token = first(c.flags.url, c.getenv("LODE_URL")), c.getenv("LODE_TOKEN")
	if out.URL == "" || out.URL == ctx.URL {
		out.URL, out.Token = ctx.URL, first(out.Token, ctx.Token)
	}
	return c.local(out), nil
}

// local fills in what the nodes of this machine left behind.
func (c *cli) local(out api.Config) api.Config {
	if dir := c.getenv("LODE_DIR"); dir != "" && out.URL == "" { // a folder that was named is the node that was meant
		if sock := filepath.Join(dir, "lode.sock"); isSocket(sock) {
			out.URL = "unix://" + sock
			return out
		}
	}
	if n, ok := meant(c.running(), out.URL); ok {
		out.URL = first(out.URL, n.URL)
		if out.Token == "" {
			out.Token = readToken(n.TokenFile)
		}
	}
	if out.URL == "" {
		out.URL = api.DefaultURL
	}
	if out.Token == "" && sameURL(out.URL, api.DefaultURL) {
		dir := c.dataDir()
		if out.Token = readToken(filepath.Join(dir, "admin.token")); out.Token == "" {
			if sock := filepath.Join(dir, "lode.sock"); isSocket(sock) {
				out.URL = "unix://" + sock
			}
		}
	}
	return out
}

// meant is the node of this machine that url names, alone or in a list; without
// a URL the one started last that takes a connection: one that was killed may
// be in the list of processes for a while.
func meant(running []current, url string) (n current, ok bool) {
	for _, n := range running {
		for one := range strings.SplitSeq(url, ",") {
			if url != "" && sameURL(strings.TrimSpace(one), n.URL) || url == "" && (len(running) == 1 || listens(n.URL)) {
				return n, true
			}
		}
	}
	if url == "" && len(running) > 0 {
		return running[0], true
	}
	return n, false
}

// listens reports whether something takes connections at a URL of this machine.
func listens(url string) bool {
	_, host, _ := strings.Cut(strings.TrimSuffix(url, "/"), "://")
	conn, err := net.DialTimeout("tcp", host, 200*time.Millisecond)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func sameURL(a, b string) bool {
	trim := func(s string) string {
		s = strings.TrimSuffix(strings.TrimPrefix(s, "http://"), "/")
		return strings.Replace(s, "localhost", "127.0.0.1", 1)
	}
	return trim(a) == trim(b)
}

func readToken(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}

func first(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}

// api is the client of the target.
func (c *cli) api() (*api.Client, error) {
	if c.client != nil {
		return c.client, nil
	}
	t, err := c.target()
	if err != nil {
		return nil, err
	}
	c.client, err = api.New(t)
	return c.client, err
}

// named is the name that word is, and the client to ask about it.
func (c *cli) named(word string) (lode.Name, *api.Client, error) {
	name, err := lode.ParseName(word)
	if err != nil {
		return "", nil, err
	}
	client, err := c.api()
	return name, client, err
}
