package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"lode/api"
)

func (c *cli) jobsCmd() *cobra.Command {
	var limit int
	ls := &cobra.Command{
		Use: "ls", Short: "List jobs, newest first", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			l, err := client.ListJobs(cmd.Context(), api.Page{Limit: limit})
			if err != nil {
				return err
			}
			t := &table{head: []string{"ID", "STATE", "FUNCTION", "DATASET", "SHARDS", "READ", "TIME", "AGE"}, none: "no jobs"}
			for _, j := range l.Items {
				t.add(j.ID, string(j.State), j.Function, fmt.Sprintf("%s@%d", j.Dataset, j.Version), fmt.Sprintf("%d/%d", j.Done, j.Shards), size(j.Read), span(j.Wall), ago(j.Created))
			}
			return c.show(l, t)
		},
	}
	ls.Flags().IntVar(&limit, "limit", 50, "jobs at most")
	var out string
	result := c.jobCmd("result ID", "Print the result of a job that is done", func(cmd *cobra.Command, client *api.Client, id string) error {
		return c.jobResult(cmd.Context(), client, id, out)
	})
	result.Flags().StringVar(&out, "out", "", "write it to a file")
	wait := c.jobCmd("wait ID", "Wait for a job's end and print its result", func(cmd *cobra.Command, client *api.Client, id string) error {
		j, err := client.GetJob(cmd.Context(), id, 0)
		if err == nil && !api.Ended(j.State) {
			j, err = c.watchJob(cmd.Context(), client, j)
		}
		if err != nil {
			return err
		}
		return c.jobEnd(cmd.Context(), client, j, out)
	})
	wait.Flags().StringVar(&out, "out", "", "write the result to a file")
	return c.group("jobs", "Jobs: list, show, wait, cancel, logs, result", ls, wait, result,
		c.jobCmd("show ID", "Show one job", func(cmd *cobra.Command, client *api.Client, id string) error {
			j, err := client.GetJob(cmd.Context(), id, 0)
			if err != nil {
				return err
			}
			return c.show(j, jobTable(j))
		}),
		c.jobCmd("cancel ID", "Cancel a job", func(cmd *cobra.Command, client *api.Client, id string) error {
			j, err := client.CancelJob(cmd.Context(), id)
			if err != nil {
				return err
			}
			return c.show(j, jobTable(j))
		}),
		c.jobLogs())
}

func (c *cli) jobCmd(use, short string, do func(*cobra.Command, *api.Client, string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: exactly(1), RunE: func(cmd *cobra.Command, args []string) error {
		client, err := c.api()
		if err != nil {
			return err
		}
		return do(cmd, client, args[0])
	}}
}

func (c *cli) jobLogs() *cobra.Command {
	var f api.LogFilter
	cmd := c.jobCmd("logs ID", "Show what a job said", func(cmd *cobra.Command, client *api.Client, id string) error {
		f.Job = id
		return c.printLogs(cmd.Context(), client, f)
	})
	cmd.Flags().BoolVarP(&f.Follow, "follow", "f", false, "go on as lines come")
	cmd.Flags().IntVar(&f.Tail, "tail", 0, "the last lines at most")
	return cmd
}

func jobTable(j api.Job) *table {
	t := &table{}
	t.add(j.ID, string(j.State))
	t.add("function", j.Function)
	t.add("dataset", fmt.Sprintf("%s@%d", j.Dataset, j.Version))
	t.add("reduce", dash(j.Reduce))
	t.add("shards", fmt.Sprintf("%d of %d done, %d running, %d repeated", j.Done, j.Shards, j.Running, j.Retried))
	t.add("read", fmt.Sprintf("%s of %s in place, %s moved", size(j.Read), size(j.Bytes), size(j.Moved)))
	t.add("time", fmt.Sprintf("%s, %s of CPU", span(j.Wall), span(j.CPU)))
	t.add("created", ago(j.Created)+" ago")
	for i, s := range j.Shares {
		t.add([]string{"nodes", ""}[min(i, 1)], shareText(s))
	}
	if j.Error != nil {
		t.add("error", fmt.Sprintf("%s (%s)", j.Error.Error(), j.Error.Kind))
	}
	return t
}

// shareText is what one node did for a job: "a: 12 shards, 1 running, ...".
func shareText(s api.JobShare) string {
	text := fmt.Sprintf("%s: %s", s.Node, plural(s.Shards, "shard"))
	if s.Running > 0 {
		text += fmt.Sprintf(", %d running", s.Running)
	}
	if s.Retried > 0 {
		text += fmt.Sprintf(", %d repeated elsewhere", s.Retried)
	}
	text += fmt.Sprintf(", %s in place, %s moved, %s of CPU", size(s.Read), size(s.Moved), span(s.CPU))
	if s.Lost {
		text += ", lost on the way"
	}
	return text
}
