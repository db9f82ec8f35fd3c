package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lode/api"
)

func (c *cli) explainCmd() *cobra.Command {
	return &cobra.Command{
		Use: "explain NAME|ID", Short: "Say why: a name, a call, a job or a trace", Args: exactly(1), ValidArgsFunction: c.completeNames(""),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			v, err := client.Explain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if c.machine() {
				return c.show(v, nil)
			}
			return c.printExplanation(v)
		},
	}
}

func (c *cli) printExplanation(v api.Explanation) error {
	fmt.Fprintf(c.out, "%s: %s\n", v.Ref, v.Summary)
	t := &table{}
	for _, s := range v.Steps {
		at, took := "", ""
		if !s.At.IsZero() {
			at = s.At.Local().Format("15:04:05.000")
		}
		if s.Took > 0 {
			took = span(s.Took)
		}
		t.add("  "+at, took, strings.TrimSpace(s.What+"  "+s.Why))
	}
	for _, k := range slices.Sorted(maps.Keys(v.Facts)) {
		t.add("  "+k, "", v.Facts[k])
	}
	if err := t.write(c.out); err != nil {
		return written(err)
	}
	for _, l := range v.Logs {
		c.printLine(l)
	}
	return nil
}

func (c *cli) nodesCmd() *cobra.Command {
	return &cobra.Command{
		Use: "nodes", Short: "List nodes", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			l, err := client.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			t := &table{head: []string{"NAME", "STATE", "BUS", "CPU", "MEM", "GPU", "ZONE", "VERSION"}}
			for _, n := range l.Items {
				t.add(n.Name, n.State, n.Bus, fmt.Sprint(n.CPU), size(n.Memory), dash(strings.Join(n.GPU, " ")), dash(n.Zone), n.Version)
			}
			return c.show(l, t)
		},
	}
}
