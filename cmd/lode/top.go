package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lode/api"
)

func (c *cli) topCmd() *cobra.Command {
	var once bool
	var every time.Duration
	cmd := &cobra.Command{
		Use: "top", Short: "Show what runs now", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			live := !once && !c.machine() && isTerminal(c.out)
			for {
				v, err := client.Top(cmd.Context())
				if err != nil {
					return err
				}
				if !live {
					return c.showTop(v)
				}
				if err := c.redraw(v); err != nil {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(max(every, 200*time.Millisecond)):
				}
			}
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print once and end")
	cmd.Flags().DurationVar(&every, "every", time.Second, "time between two looks")
	return cmd
}

// showTop prints a table of nodes, where there are several, before that of
// functions.
func (c *cli) showTop(v api.Top) error {
	if len(v.Nodes) == 0 || c.flags.output != "" && c.flags.output != "table" {
		return c.show(v, topTable(v))
	}
	if err := topNodes(v).write(c.out); err != nil {
		return written(err)
	}
	fmt.Fprintln(c.out)
	return c.show(v, topTable(v))
}

func (c *cli) redraw(v api.Top) error {
	var b bytes.Buffer
	b.WriteString("\x1b[H\x1b[2J")
	fmt.Fprintf(&b, "%s   up %s   %.2f cores   %s resident, %s in sandboxes, %s of code\n\n",
		first(v.Node, plural(len(v.Nodes), "node")), span(time.Duration(v.Uptime*float64(time.Second))), v.CPU, size(v.Memory), size(v.Sandboxes), size(v.Cache))
	if len(v.Nodes) > 0 {
		if err := topNodes(v).write(&b); err != nil {
			return err
		}
		b.WriteByte('\n')
	}
	if err := topTable(v).write(&b); err != nil {
		return err
	}
	_, err := io.Copy(c.out, &b)
	return written(err)
}

func topNodes(v api.Top) *table {
	t := &table{head: []string{"NODE", "UP", "CALLS/S", "ERRORS/S", "BUSY", "WARM", "QUEUED", "CPU", "MEMORY"}}
	for _, n := range v.Nodes {
		t.add(n.Node, span(time.Duration(n.Uptime*float64(time.Second))), fmt.Sprintf("%.1f", n.Rate), fmt.Sprintf("%.1f", n.Errors),
			fmt.Sprint(n.Busy), fmt.Sprint(n.Warm), fmt.Sprint(n.Queued), fmt.Sprintf("%.2f", n.CPU), size(n.Memory))
	}
	for _, name := range v.Missing {
		t.add(name, "does not answer", "-", "-", "-", "-", "-", "-", "-")
	}
	return t
}

func topTable(v api.Top) *table {
	t := &table{head: []string{"NAME", "REV", "CALLS/S", "ERRORS/S", "P50", "P99", "BUSY", "WARM", "QUEUED", "CPU", "MEMORY"}, none: "nothing ran in the last minute"}
	if len(v.Nodes) > 0 {
		t.head = append(t.head, "NODES")
	}
	for _, r := range v.Rows {
		row := []string{string(r.Name), fmt.Sprint(r.Rev), fmt.Sprintf("%.1f", r.Rate), fmt.Sprintf("%.1f", r.Errors), span(r.P50), span(r.P99),
			fmt.Sprint(r.Busy), fmt.Sprint(r.Warm), fmt.Sprint(r.Queued), fmt.Sprintf("%.2f", r.CPU), size(r.Memory)}
		if len(v.Nodes) > 0 {
			row = append(row, dash(strings.Join(r.Nodes, " ")))
		}
		t.add(row...)
	}
	return t
}
