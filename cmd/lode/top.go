package main

import (
	"bytes"
	"fmt"
	"io"
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
					return c.show(v, topTable(v))
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

func (c *cli) redraw(v api.Top) error {
	var b bytes.Buffer
	b.WriteString("\x1b[H\x1b[2J")
	fmt.Fprintf(&b, "%s   up %s   %.2f cores   %s resident, %s in sandboxes, %s of code\n\n",
		v.Node, span(time.Duration(v.Uptime*float64(time.Second))), v.CPU, size(v.Memory), size(v.Sandboxes), size(v.Cache))
	if err := topTable(v).write(&b); err != nil {
		return err
	}
	_, err := io.Copy(c.out, &b)
	return written(err)
}

func topTable(v api.Top) *table {
	t := &table{head: []string{"NAME", "REV", "CALLS/S", "ERRORS/S", "P50", "P99", "BUSY", "WARM", "QUEUED", "CPU", "MEMORY"}, none: "nothing ran in the last minute"}
	for _, r := range v.Rows {
		t.add(string(r.Name), fmt.Sprint(r.Rev), fmt.Sprintf("%.1f", r.Rate), fmt.Sprintf("%.1f", r.Errors), span(r.P50), span(r.P99),
			fmt.Sprint(r.Busy), fmt.Sprint(r.Warm), fmt.Sprint(r.Queued), fmt.Sprintf("%.2f", r.CPU), size(r.Memory))
	}
	return t
}
