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
		Use: "explain NAME|KIND/KEY|ID", Short: "Say why: a name, an agent, a call, a job or a trace", Args: exactly(1), ValidArgsFunction: c.completeNames(""),
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
	if len(v.Candidates) > 0 {
		if err := candidateTable(v.Candidates).write(c.out); err != nil {
			return written(err)
		}
	}
	if len(v.Waits) > 0 {
		if err := waitTable(v.Waits).write(c.out); err != nil {
			return written(err)
		}
	}
	p := c.linePrinter()
	for _, l := range v.Logs {
		p.named = p.named || l.Node != v.Logs[0].Node
	}
	for _, l := range v.Logs {
		p.print(l)
	}
	return nil
}

// candidateTable is what placement weighed: start is hop + wait + data + code.
func candidateTable(all []api.Candidate) *table {
	t := &table{head: []string{"  NODE", "START", "= HOP", "+ WAIT", "+ DATA", "+ CODE", "RUN", ""}}
	for _, k := range all {
		if k.Refused != "" {
			t.add("  "+k.Node, "-", "-", "-", "-", "-", "-", "refused: "+k.Refused)
			continue
		}
		verdict := ""
		if k.Chosen {
			verdict = "chosen"
		}
		t.add("  "+k.Node, span(k.Start()), span(k.Hop), span(k.Wait), span(k.Data), span(k.Code), span(k.Run), verdict)
	}
	return t
}
