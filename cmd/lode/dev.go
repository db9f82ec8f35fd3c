package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

// settle is how long files must rest before a reload: editors write a file in
// several steps.
const settle = 60 * time.Millisecond

func (c *cli) devCmd() *cobra.Command {
	var port int
	var keep bool
	cmd := &cobra.Command{
		Use:   "dev [DIR]",
		Short: "A throw-away node that deploys a folder and reloads it on save",
		Long: `Run a node whose data goes away with it, deploy a folder, deploy it again at each
save, and show what its functions log. Without DIR the working folder is
deployed if it is a source. Other commands on this machine find the node by
themselves.`,
		Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := first(first(args...), ".")
			log, err := c.logger("text", slog.LevelWarn)
			if err != nil {
				return err
			}
			o := nodeOptions{listen: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), log: log, name: "dev"}
			if keep {
				if o.dir, err = filepath.Abs(filepath.Join(dir, ".lode")); err != nil {
					return lode.Errorf(lode.Invalid, "%w", err)
				}
			} else {
				if o.dir, err = os.MkdirTemp("", "lode-dev-"); err != nil {
					return lode.Errorf(lode.Full, "%w", err)
				}
				defer os.RemoveAll(o.dir)
			}
			return c.dev(cmd.Context(), o, dir, len(args) > 0)
		},
	}
	cmd.Flags().IntVar(&port, "port", stdPort, "port of the gateway")
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the node's data in DIR/.lode")
	return cmd
}

func (c *cli) dev(ctx context.Context, o nodeOptions, dir string, named bool) error {
	n, err := openNode(ctx, o)
	if err != nil {
		return err
	}
	defer c.setCurrent(current{URL: n.URL(), Dir: n.Dir(), TokenFile: n.TokenPath(), PID: os.Getpid()})()
	client, err := api.New(api.Config{URL: n.URL(), Token: readToken(n.TokenPath()), Namespace: lode.Namespace(c.flags.namespace)})
	if err != nil {
		return errors.Join(err, n.Close(context.WithoutCancel(ctx)))
	}
	fmt.Fprintf(c.err, "lode dev is ready: %s   token %s\n", n.URL(), n.TokenPath())

	work, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { c.devLogs(work, client) })
	if named || devSource(dir) {
		d := &deployment{c: c, client: client, path: dir, quiet: true}
		running.Go(func() { c.devLoop(work, d) })
	} else {
		c.hint("there is no source here: lode deploy DIR puts a function on this node, lode dev DIR reloads it on save")
	}
	err = c.serve(ctx, n)
	stop()
	running.Wait()
	client.Close()
	return err
}

// devSource reports whether a folder is meant to be deployed when it was not
// named: it holds a lode.yaml or a source itself.
func devSource(dir string) bool {
	for _, name := range []string{"lode.yaml", "lode.yml", "go.mod", "package.json", "main.go", "index.ts", "index.js", "index.mjs"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	m, _ := filepath.Glob(filepath.Join(dir, "*.c"))
	return len(m) > 0
}

// devLogs shows what functions say, until ctx is over.
func (c *cli) devLogs(ctx context.Context, client *api.Client) {
	lines := c.linePrinter()
	for ctx.Err() == nil {
		err := client.ReadLogs(ctx, api.LogFilter{Follow: true, Since: time.Now()}, func(l api.LogLine) error {
			if l.Name != "" {
				lines.print(l)
			}
			return nil
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// devLoop deploys, and deploys again when what was read has changed.
func (c *cli) devLoop(ctx context.Context, d *deployment) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		c.printError(lode.Errorf(lode.Unavailable, "watch files: %w", err).WithHint("raise fs.inotify.max_user_instances; until then deploy by hand"))
		return
	}
	defer w.Close()
	c.devDeploy(ctx, d, w, true)
	var quiet <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.Events:
			if !ok {
				return
			}
			if e.Op == fsnotify.Chmod || ignored(e.Name) {
				continue
			}
			quiet = time.After(settle)
		case err, ok := <-w.Errors:
			if !ok {
				return
			}
			c.hint("watch files: %v", err)
		case <-quiet:
			quiet = nil
			c.devDeploy(ctx, d, w, false)
		}
	}
}

// ignored are files that editors and builds leave around.
func ignored(path string) bool {
	base := filepath.Base(path)
	return strings.HasPrefix(base, ".") && base != ".env" || strings.HasSuffix(base, "~") || strings.HasSuffix(base, ".swp") || base == "4913" ||
		strings.Contains(path, string(filepath.Separator)+"node_modules"+string(filepath.Separator))
}

// devDeploy deploys once and tells how that went. A failure leaves what was
// deployed before.
func (c *cli) devDeploy(ctx context.Context, d *deployment, w *fsnotify.Watcher, firstTime bool) {
	start := time.Now()
	err := d.build(ctx)
	var plan api.Plan
	if err == nil {
		plan, err = d.client.Deploy(ctx, d.app, api.DeployOptions{Prune: true})
	}
	if err == nil && firstTime {
		err = d.fill(ctx)
	}
	watchAll(w, d)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.printError(usage(err))
		return
	}
	changed := false
	for _, ch := range plan.Changes {
		if ch.Op != api.OpKeep || firstTime {
			changed = true
			fmt.Fprintf(c.err, "%s %s %s   %s   rev %d   %s\n", ch.Op, ch.Kind, ch.Name, changeDetail(ch), ch.Rev, first(ch.URLs...))
		}
	}
	if changed {
		c.say("deployed in %s", span(time.Since(start)))
	}
	if firstTime {
		d.remind(ctx)
	}
}

// watchAll watches the app's folder, and what the builds said that they read.
func watchAll(w *fsnotify.Watcher, d *deployment) {
	root, err := filepath.Abs(first(d.path, "."))
	if err != nil {
		return
	}
	if info, err := os.Stat(root); err == nil && !info.IsDir() {
		root = filepath.Dir(root)
	}
	for _, p := range append([]string{root}, d.watch...) {
		filepath.WalkDir(p, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return nil // it may be gone by now
			}
			if !e.IsDir() {
				if path == p {
					w.Add(filepath.Dir(path))
				}
				return nil
			}
			if base := e.Name(); path != p && (strings.HasPrefix(base, ".") || base == "node_modules") {
				return filepath.SkipDir
			}
			w.Add(path)
			return nil
		})
	}
}
