package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

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
	peers, bus        string            // host:port for other nodes and for the bus; "": none are let in
	public            bool              // other machines can reach it: tokens at every door
	hosts             []string          // names that a public node answers for, beside its own
	zone              string            // "" = none
	labels            map[string]string // for --where
	gatewayOnly       bool              // pass every call on
	join              *joinTo           // nil: alone, or of the cluster that the folder belongs to
	nats              *natsCluster      // nil: the node's own bus
	bucket            string            // s3://BUCKET[/PREFIX]?endpoint=..., or ""
	code              int64             // bytes of loaded code; 0 = the node's own
	warm              time.Duration     // of an idle sandbox; 0 = the node's own
	repair            time.Duration     // from the loss of a node to new copies; 0 = the node's own
	log               *slog.Logger
}

// natsCluster is a NATS cluster of the user's own.
type natsCluster struct {
	url   string
	creds string // file, or ""
}

// upFlags are the flags of lode up that become options.
type upFlags struct {
	bind, format, join, token, nats, creds, acme string
	port                                         int
	labels                                       []string
}

func (c *cli) upCmd() *cobra.Command {
	var o nodeOptions
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a node",
		Long: `Run a node in the foreground, until Ctrl-C.

Its data is in one folder: -d, else LODE_DIR, else /var/lib/lode for root, else
~/.local/share/lode. rm -r of that folder uninstalls all but the binary.

  lode up                                                      alone, on loopback
  lode up --bind 10.0.0.1                                      other machines reach it
  lode up --bind 10.0.0.2 --join 10.0.0.1 --token @join.token  a second node
  lode up --port 5733 -d b --join 127.0.0.1:5633               ... on the same machine

A folder that has joined belongs to its cluster: start it again with or without
--join. docs/cluster.md is the operator's page.`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.upOptions(cmd, &o, f); err != nil {
				return err
			}
			return c.up(cmd.Context(), o)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&o.dir, "dir", "d", "", "data folder (LODE_DIR)")
	fl.StringVar(&f.bind, "bind", "127.0.0.1", "address to listen on: a host, or host:port")
	fl.IntVar(&f.port, "port", stdPort, "port of the gateway; peers have the next, the bus the one after")
	fl.StringVar(&f.join, "join", "", "join the cluster of the node at HOST[:PORT], PORT being its gateway's")
	fl.StringVar(&f.token, "token", "", "join token, or @FILE (LODE_JOIN_TOKEN); not needed where the other node is on this machine")
	fl.StringVar(&o.name, "name", "", "name of the node (default: the host's)")
	fl.BoolVar(&o.gatewayOnly, "gateway-only", false, "pass every call on to other nodes, and run none here")
	fl.StringVar(&o.zone, "zone", "", "where the machine stands: copies go to different zones")
	fl.StringArrayVar(&f.labels, "label", nil, "label of the node, as in disk=ssd; may be repeated")
	fl.StringArrayVar(&o.hosts, "host", nil, "also answer for this host name, as a load balancer's; may be repeated")
	fl.StringVar(&f.nats, "nats", "", "use this NATS cluster instead of a bus of the nodes' own, as nats://a:4222,nats://b:4222")
	fl.StringVar(&f.creds, "creds", "", "credentials file for --nats")
	fl.StringVar(&o.bucket, "bucket", "", "keep datasets in a bucket: s3://BUCKET[/PREFIX]?endpoint=URL; keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	fl.Var((*sizeFlag)(&o.code), "code-cache", "memory for loaded code, as 512MiB; what is over it is loaded again from disk")
	fl.DurationVar(&o.warm, "warm", 0, "how long an idle sandbox stays warm (default 1m)")
	fl.DurationVar(&o.repair, "repair-after", 0, "how long a node may be lost before others make copies of what it held and take its seat on the bus (default 1m)")
	fl.StringVar(&f.format, "log-format", "text", "text or json")
	fl.StringVar(&f.acme, "acme", "", "mail address for ACME; in a later version")
	fl.MarkHidden("acme")
	return cmd
}

// upOptions makes options of the flags.
func (c *cli) upOptions(cmd *cobra.Command, o *nodeOptions, f upFlags) (err error) {
	if cmd.Flags().Changed("acme") {
		return lode.Errorf(lode.Invalid, "this version of Lode has no --acme yet").WithHint("put a proxy with TLS before the nodes")
	}
	if o.log, err = c.logger(f.format, slog.LevelInfo); err != nil {
		return err
	}
	o.dir = first(o.dir, c.dataDir())
	b, err := parseBind(f.bind, f.port, cmd.Flags().Changed("port"))
	if err != nil {
		return err
	}
	o.listen, o.peers, o.bus, o.public = b.address(0), b.address(1), b.address(2), b.public
	if o.name != "" {
		if _, err := lode.ParseNodeID(o.name); err != nil {
			return err
		}
	}
	if cmd.Flags().Changed("repair-after") && o.repair < time.Second {
		return lode.Errorf(lode.Invalid, "--repair-after %v is too short: a node is lost after a second of silence", o.repair).WithHint("1m is a good value; longer where machines take longer to start again")
	}
	if o.labels, err = labels(f.labels); err != nil {
		return err
	}
	if o.nats, err = parseNATS(f.nats, f.creds); err != nil {
		return err
	}
	o.join, err = c.parseJoin(f.join, f.token)
	return err
}

func parseNATS(urls, creds string) (*natsCluster, error) {
	if urls == "" {
		if creds != "" {
			return nil, lode.Errorf(lode.Invalid, "--creds is for --nats, which is missing").WithHint("--nats nats://HOST:4222 --creds %s", creds)
		}
		return nil, nil
	}
	for one := range strings.SplitSeq(urls, ",") {
		u, err := url.Parse(strings.TrimSpace(one))
		if err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls" {
			return nil, lode.Errorf(lode.Invalid, "--nats %q is no address of a NATS server", one).WithHint("want nats://HOST:4222 or tls://HOST:4222, several with commas")
		}
	}
	if creds != "" {
		if _, err := os.Stat(creds); err != nil {
			return nil, lode.Errorf(lode.Invalid, "--creds: %w", err)
		}
	}
	return &natsCluster{url: urls, creds: creds}, nil
}

// up runs a node until it is told to stop.
func (c *cli) up(ctx context.Context, o nodeOptions) error {
	defer tune(ctx)()
	n, err := openNode(ctx, o)
	if err != nil {
		return err
	}
	forget := c.setCurrent(current{URL: n.URL(), Dir: n.Dir(), TokenFile: n.TokenPath(), PID: os.Getpid()})
	defer forget()
	fmt.Fprintf(c.err, "lode %s is ready: %s   data %s   token %s\n", productVersion(), n.URL(), n.Dir(), n.TokenPath())
	if o.public || o.join != nil {
		c.announce(ctx, n, o)
	}
	return c.serve(ctx, n)
}

// announce tells what the cluster is now that the node is part of it, and how
// the next one joins the first.
func (c *cli) announce(ctx context.Context, n localNode, o nodeOptions) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client, err := api.New(api.Config{URL: "unix://" + n.SocketPath()})
	if err != nil {
		return // a path of our own
	}
	defer client.Close()
	l, err := client.Nodes(ctx)
	if err != nil {
		c.hint("lode nodes tells how the cluster is; it could not be asked just now: %v", err)
		return
	}
	if len(l.Items) > 1 {
		joined := ""
		if o.join != nil {
			joined = "joined " + o.join.address() + ": "
		}
		c.say("%s%s, %s; an acknowledged write survives %s", joined, plural(len(l.Items), "node"), l.Cluster.Line(), l.Cluster.SurvivesText())
		switch alone := l.Cluster.External == "" && len(l.Cluster.Members) == 1; {
		case alone && len(l.Items) == 2:
			c.hint("two nodes keep one copy of what is acknowledged: a third makes it three")
		case alone:
			c.hint("three of them become bus members within seconds: lode nodes tells when")
		}
		return
	}
	k, err := client.CreateJoinToken(ctx, api.JoinSpec{})
	if err != nil {
		c.hint("lode token create --join makes what the next node needs; it could not be made just now: %v", err)
		return
	}
	c.say("the next node, within %s (lode token create --join makes another token):\n  %s", span(time.Until(k.Expires).Round(time.Minute)), k.Command)
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
