package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"lode"
)

const stdPort = 5633

// localNode is the node that this process runs.
type localNode interface {
	URL() string
	TokenPath() string
	SocketPath() string
	Dir() string
	// Failed tells of a door that ended by itself.
	Failed() <-chan error
	Close(context.Context) error
}

// nodeOptions are what the command decides about a node.
type nodeOptions struct {
	dir, listen, name string
	bucket            string        // s3://BUCKET[/PREFIX]?endpoint=..., or ""
	code              int64         // bytes of loaded code; 0 = the node's own
	warm              time.Duration // of an idle sandbox; 0 = the node's own
	log               *slog.Logger
}

func (c *cli) upCmd() *cobra.Command {
	var o nodeOptions
	var bind, format string
	var port int
	later := map[string]*string{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a node",
		Long: `Run a node in the foreground, until Ctrl-C.

Its data is in one folder: -d, else LODE_DIR, else /var/lib/lode for root, else
~/.local/share/lode. rm -r of that folder uninstalls all but the binary.`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := refuseLater(cmd, later); err != nil {
				return err
			}
			var err error
			if o.log, err = c.logger(format, slog.LevelInfo); err != nil {
				return err
			}
			if o.dir == "" {
				o.dir = c.dataDir()
			}
			defer tune(cmd.Context())()
			o.listen = net.JoinHostPort(bind, strconv.Itoa(port))
			n, err := openNode(cmd.Context(), o)
			if err != nil {
				return err
			}
			forget := c.setCurrent(current{URL: n.URL(), Dir: n.Dir(), TokenFile: n.TokenPath(), PID: os.Getpid()})
			defer forget()
			fmt.Fprintf(c.err, "lode %s is ready: %s   data %s   token %s\n", productVersion(), n.URL(), n.Dir(), n.TokenPath())
			return c.serve(cmd.Context(), n)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.dir, "dir", "d", "", "data folder (LODE_DIR)")
	f.StringVar(&bind, "bind", "127.0.0.1", "address to listen on; this version takes loopback only")
	f.IntVar(&port, "port", stdPort, "port of the gateway")
	f.StringVar(&o.name, "name", "", "name of the node (default: the host's)")
	f.StringVar(&o.bucket, "bucket", "", "keep datasets in a bucket: s3://BUCKET[/PREFIX]?endpoint=URL; keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	f.Var((*sizeFlag)(&o.code), "code-cache", "memory for loaded code, as 512MiB; what is over it is loaded again from disk")
	f.DurationVar(&o.warm, "warm", 0, "how long an idle sandbox stays warm (default 1m)")
	f.StringVar(&format, "log-format", "text", "text or json")
	for name, about := range map[string]string{"join": "node to join", "token": "join token", "zone": "zone", "label": "label", "nats": "NATS cluster of one's own", "acme": "mail address for ACME"} {
		later[name] = f.String(name, "", about+"; in a later version")
		f.MarkHidden(name)
	}
	return cmd
}

// refuseLater refuses flags whose feature comes later.
func refuseLater(cmd *cobra.Command, flags map[string]*string) error {
	hints := map[string]string{"join": "one node is a whole Lode", "token": "one node is a whole Lode", "nats": "the node brings its own", "acme": "put a proxy with TLS before the node",
		"zone": "there is one node", "label": "there is one node"}
	for name := range flags {
		if cmd.Flags().Changed(name) {
			return lode.Errorf(lode.Invalid, "this version of Lode has no --%s yet", name).WithHint("%s", hints[name])
		}
	}
	return nil
}

func (c *cli) logger(format string, level slog.Level) (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(c.err, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(c.err, o)), nil
	}
	return nil, lode.Errorf(lode.Invalid, "there is no log format %q", format).WithHint("formats: text, json")
}

// serve waits for Ctrl-C or for the node to fail, and closes it. A second
// Ctrl-C kills the process: nothing acknowledged is lost by that either.
func (c *cli) serve(ctx context.Context, n localNode) error {
	var failed error
	select {
	case <-ctx.Done():
		c.release()
		c.say("stopping; Ctrl-C again stops at once")
	case failed = <-n.Failed():
	}
	if err := n.Close(context.WithoutCancel(ctx)); failed == nil {
		failed = err
	}
	if failed != nil {
		return lode.AsError(failed)
	}
	return nil
}
