package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
	"lode/cmd/spec"
)

func (c *cli) logsCmd() *cobra.Command {
	var f api.LogFilter
	var since, invocation string
	cmd := &cobra.Command{
		Use: "logs [NAME]", Short: "Show what functions said", Args: between(0, 1), ValidArgsFunction: c.completeNames(api.KindFunction),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				n, err := lode.ParseName(args[0])
				if err != nil {
					return err
				}
				f.Name = n
			}
			if since != "" {
				d, err := spec.ParseDuration(since)
				if err != nil {
					return lode.Errorf(lode.Invalid, "--since: %w", err).WithHint("as in 10m, 1h or 2d")
				}
				f.Since = time.Now().Add(-d)
			}
			f.Invocation = lode.InvocationID(invocation)
			if f.Tail == 0 && since == "" && invocation == "" && f.Grep == "" {
				f.Tail = 100
			}
			client, err := c.api()
			if err != nil {
				return err
			}
			return c.printLogs(cmd.Context(), client, f)
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.Follow, "follow", "f", false, "go on as lines come")
	fl.StringVar(&since, "since", "", "not older than this, as in 1h")
	fl.StringVar(&f.Grep, "grep", "", "lines that match an RE2 expression")
	fl.StringVar(&invocation, "invocation", "", "of one invocation")
	fl.IntVar(&f.Tail, "tail", 0, "the last lines at most (default 100)")
	return cmd
}

func (c *cli) printLogs(ctx context.Context, client *api.Client, f api.LogFilter) error {
	p := c.linePrinter()
	p.named = severalNodes(ctx, client)
	return client.ReadLogs(ctx, f, func(l api.LogLine) error {
		if c.flags.output == "json" {
			b, err := json.Marshal(l)
			if err != nil {
				return lode.Errorf(lode.Internal, "%w", err)
			}
			_, err = c.out.Write(append(b, '\n'))
			return written(err)
		}
		p.print(l)
		return nil
	})
}

// severalNodes reports whether lines may come from more than one node.
func severalNodes(ctx context.Context, client *api.Client) bool {
	l, err := client.Nodes(ctx)
	return err == nil && len(l.Items) > 1
}

// linePrinter prints log lines. named: with the node before each.
type linePrinter struct {
	c     *cli
	named bool
}

func (c *cli) linePrinter() *linePrinter { return &linePrinter{c: c} }

// print is "15:04:05.000 [node] hello@3 text", with a level that is not info.
func (p *linePrinter) print(l api.LogLine) {
	who := first(string(l.Name), l.Node, "node")
	if l.Rev > 0 {
		who = fmt.Sprintf("%s@%d", who, l.Rev)
	}
	if p.named && l.Name != "" && l.Node != "" {
		who = l.Node + " " + who
	}
	level := ""
	if l.Level != "" && l.Level != "info" {
		level = l.Level + ": "
	}
	fmt.Fprintf(p.c.out, "%s %s %s%s\n", l.At.Local().Format("15:04:05.000"), who, level, l.Text)
}
