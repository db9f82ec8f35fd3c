package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

func (c *cli) nodesCmd() *cobra.Command {
	var force bool
	rm := &cobra.Command{
		Use: "rm NODE", Short: "Take a node out of the cluster, for ever", Args: exactly(1), ValidArgsFunction: c.completeNodes(),
		Long: `Take a node out of the cluster. It has to be drained (lode drain NODE) or lost;
--force takes it out although it is neither. Its certificate is refused from then
on; the same machine may join again with an empty data folder. To replace a lost
node, let the new one join first: it takes the seat on the bus, and no moment has
fewer copies than need be.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			if force {
				if err := c.confirm("take " + args[0] + " out of the cluster, whatever it still carries?"); err != nil {
					return err
				}
			}
			if err := client.RemoveNode(cmd.Context(), args[0], force); err != nil {
				return err
			}
			c.say("%s is out of the cluster", args[0])
			if l, err := client.Nodes(cmd.Context()); err == nil && len(l.Items) == 2 && l.Cluster.External == "" {
				c.hint("two nodes keep one copy of what is acknowledged: let a third join")
			}
			return nil
		},
	}
	rm.Flags().BoolVar(&force, "force", false, "although it is neither drained nor lost")
	nodes := c.group("nodes", "List nodes, and say what a failure costs", rm)
	nodes.Long = `List the nodes of the cluster, the bus members among them, and how many of them may
be lost without losing anything that was acknowledged.

  lode nodes
  lode nodes rm NODE          a drained or lost node leaves for good`
	usage := nodes.RunE
	nodes.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage(cmd, args)
		}
		return c.listNodes(cmd.Context())
	}
	return nodes
}

func (c *cli) listNodes(ctx context.Context) error {
	client, err := c.api()
	if err != nil {
		return err
	}
	l, err := client.Nodes(ctx)
	if err != nil {
		return err
	}
	t := nodeTable(l, time.Now())
	if c.flags.output != "" && c.flags.output != "table" {
		return c.show(l, t)
	}
	return written(beside(c, t, clusterLines(l)))
}

func nodeTable(l api.NodeList, now time.Time) *table {
	t := &table{head: []string{"NAME", "STATE", "BUS", "CPU", "MEM", "GPU", "ZONE", "LINK", "VERSION"}}
	for _, n := range l.Items {
		t.add(n.Name, string(n.State), n.Bus, fmt.Sprint(n.CPU), size(n.Memory), dash(strings.Join(n.GPU, " ")), dash(n.Zone), linkText(n.Link, now), n.Version)
	}
	return t
}

// linkText is "-" for the node that answers, the round trip, or since when the
// node is lost.
func linkText(l *api.Link, now time.Time) string {
	switch {
	case l == nil:
		return "-"
	case l.Up:
		return span(l.RTT)
	case l.LostSince.IsZero():
		return "lost"
	}
	return "lost " + span(now.Sub(l.LostSince).Truncate(time.Second))
}

// clusterLines is what stands beside the table of nodes.
func clusterLines(l api.NodeList) []string {
	s := &l.Cluster
	lines := []string{"cluster: " + s.Line(), "an acknowledged write survives: " + s.SurvivesText()}
	if !s.Quorum {
		lines = append(lines, "writes are refused: most members do not answer")
	}
	if s.Moving != "" {
		lines = append(lines, s.Moving)
	}
	if len(l.Items) > 1 {
		lines = append(lines, "keeper: "+first(s.Keeper, "none"))
	}
	if len(l.Items) == 2 && s.External == "" {
		lines = append(lines, "two nodes keep one copy: add a third")
	}
	return lines
}

// beside writes a table with lines to the right of its rows.
func beside(c *cli, t *table, lines []string) error {
	var b bytes.Buffer
	if err := t.write(&b); err != nil {
		return err
	}
	rows := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	wide := 0
	for _, r := range rows {
		wide = max(wide, utf8.RuneCountInString(r))
	}
	for len(rows) < len(lines) {
		rows = append(rows, "")
	}
	for i, r := range rows {
		if i < len(lines) {
			r += strings.Repeat(" ", wide-utf8.RuneCountInString(r)+8) + lines[i]
		}
		if _, err := fmt.Fprintln(c.out, r); err != nil {
			return err
		}
	}
	return nil
}

func (c *cli) drainCmd() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Let a node take nothing new, and wait until it is empty", Args: exactly(1), ValidArgsFunction: c.completeNodes(),
		Long: `Drain a node: it takes nothing new, gives its seat on the bus, the keeper's lease and
shards without another copy to other nodes, and finishes what it has begun. The
command ends with 0 only when the node is empty and may be stopped. Ctrl-C stops
the waiting, not the drain; lode undrain NODE takes it back.

  lode drain b --timeout 5m && ssh b systemctl restart lode`,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			return c.drain(cmd.Context(), client, args[0], timeout)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait; the drain goes on behind it")
	return cmd
}

// drainLook is how long one request of a drain waits at the node.
const drainLook = 2 * time.Second

// drain asks again and again until the node is empty.
func (c *cli) drain(ctx context.Context, client *api.Client, name string, timeout time.Duration) error {
	start := time.Now()
	b := c.newBar("drain "+name, 0, false)
	defer b.end()
	most, told := int64(0), ""
	for {
		left := timeout - time.Since(start)
		n, err := client.DrainNode(ctx, name, max(0, min(drainLook, left)))
		if err != nil {
			if ctx.Err() != nil {
				c.hint("%s goes on draining; lode undrain %s takes it back", name, name)
			}
			return err
		}
		carries := strings.Join(carriedBy(n), ", ")
		switch {
		case n.Empty():
			b.end()
			if c.flags.output != "" && c.flags.output != "table" {
				return c.show(n, nameOnly(n.Name))
			}
			c.say("%s is empty after %s: it may be stopped", name, span(time.Since(start)))
			return nil
		case n.State == api.NodeLost:
			return lode.Errorf(lode.Unavailable, "%s is lost: nobody knows what it still carries", name).
				WithHint("start it again, or take it out: lode nodes rm %s", name)
		case time.Since(start) >= timeout:
			return lode.Errorf(lode.Deadline, "%s still carries %s after %s", name, first(carries, "something"), span(timeout)).
				WithHint("it goes on draining: ask again with lode drain %s, or take it back with lode undrain %s", name, name)
		}
		work := int64(n.Running + n.Queued)
		most = max(most, work)
		b.set(most-work, most, carries)
		if b.w == nil && carries != told { // no terminal: a line for each change
			c.say("%s carries %s", name, carries)
			told = carries
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // a node that answers at once is not asked without a pause
		}
	}
}

// carriedBy is what a node has to get rid of, in words.
func carriedBy(n api.Node) []string {
	var out []string
	if n.Running > 0 {
		out = append(out, fmt.Sprintf("%d running", n.Running))
	}
	if n.Queued > 0 {
		out = append(out, fmt.Sprintf("%d waiting", n.Queued))
	}
	return append(out, n.Left...)
}

func nameOnly(name string) *table {
	t := &table{}
	t.add(name)
	return t
}

func (c *cli) undrainCmd() *cobra.Command {
	return &cobra.Command{
		Use: "undrain NODE", Short: "Let a drained node serve again", Args: exactly(1), ValidArgsFunction: c.completeNodes(),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			n, err := client.UndrainNode(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			t := &table{}
			t.add(n.Name, string(n.State))
			return c.show(n, t)
		},
	}
}

// completeNodes completes names of nodes.
func (c *cli) completeNodes() cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		client, err := c.api()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		l, err := client.Nodes(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		for _, n := range l.Items {
			out = append(out, cobra.CompletionWithDesc(n.Name, string(n.State)))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
