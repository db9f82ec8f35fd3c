package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

func (c *cli) callsCmd() *cobra.Command {
	return c.group("calls", "Asynchronous calls and dead letters", c.callsLs(), c.callsShow(), c.callsResult(),
		c.callsAct("cancel ID...", "Cancel calls", (*api.Client).CancelCall), c.callsReplay())
}

func (c *cli) callsLs() *cobra.Command {
	var f api.CallFilter
	var fn, state string
	var limit int
	cmd := &cobra.Command{
		Use: "ls", Short: "List calls, newest first", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			f.Function, f.State = lode.Name(fn), lode.State(state)
			l, err := client.ListCalls(cmd.Context(), f, api.Page{Limit: limit})
			if err != nil {
				return err
			}
			t := &table{head: []string{"ID", "FUNCTION", "STATE", "TRIES", "AGE", "ERROR"}, none: "no calls"}
			for _, v := range l.Items {
				state, why := string(v.State), ""
				if v.Dead {
					state = "dead"
				}
				if v.Error != nil {
					why = v.Error.Error()
				}
				t.add(string(v.ID), string(v.Function), state, fmt.Sprint(v.Attempts), ago(v.Created), clip(why, 60))
			}
			if err := c.show(l, t); err != nil {
				return err
			}
			if l.Next != "" && !c.machine() {
				c.hint("there are more: --limit %d", 2*limit)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&fn, "function", "", "of this function")
	cmd.Flags().StringVar(&state, "state", "", "queued, running, done, failed or cancelled")
	cmd.Flags().BoolVar(&f.Dead, "dead", false, "dead letters only")
	cmd.Flags().IntVar(&limit, "limit", 50, "calls at most")
	return cmd
}

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-3]) + "..."
	}
	return s
}

func callTable(v api.Call) *table {
	t := &table{}
	t.add(string(v.ID), string(v.State))
	t.add("function", first(v.Revision, string(v.Function)))
	t.add("trigger", string(v.Trigger))
	t.add("attempts", fmt.Sprint(v.Attempts))
	if v.Node != "" {
		t.add("node", v.Node)
	}
	t.add("created", ago(v.Created)+" ago")
	if !v.Ended.IsZero() {
		t.add("ended", fmt.Sprintf("%s ago, after %s", ago(v.Ended), span(v.Ended.Sub(v.Created))))
	}
	if !v.Next.IsZero() {
		t.add("next try", "in "+span(time.Until(v.Next)))
	}
	if v.Status > 0 {
		t.add("status", fmt.Sprint(v.Status))
	}
	if v.Error != nil {
		t.add("error", fmt.Sprintf("%s (%s)", v.Error.Error(), v.Error.Kind))
		if g := v.Error.Guest; g != nil {
			t.add("guest", fmt.Sprintf("%s: %s", g.Type, g.Message))
			for _, line := range g.Stack {
				t.add("", line)
			}
		}
	}
	if v.Dead {
		t.add("dead", "will not be tried again: lode calls replay "+string(v.ID))
	}
	return t
}

func (c *cli) callsShow() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one call", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			v, err := client.GetCall(cmd.Context(), lode.InvocationID(args[0]), wait)
			if err != nil {
				return err
			}
			return c.show(v, callTable(v))
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait for its end, at most this long (up to 1m)")
	return cmd
}

func (c *cli) callsResult() *cobra.Command {
	return &cobra.Command{
		Use: "result ID", Short: "Print the answer of a call that is done", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			v, err := client.CallResult(cmd.Context(), lode.InvocationID(args[0]))
			if err != nil {
				return err
			}
			defer v.Body.Close()
			if _, err := io.Copy(c.out, v.Body); err != nil {
				return lode.AsError(err)
			}
			if v.Status >= 400 {
				c.say("the function answered %d", v.Status)
				return exitCode(lode.Crashed.ExitCode())
			}
			return nil
		},
	}
}

// callsAct makes a command that does one thing to each id.
func (c *cli) callsAct(use, short string, do func(*api.Client, context.Context, lode.InvocationID) (api.Call, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			for _, id := range args {
				v, err := do(client, cmd.Context(), lode.InvocationID(id))
				if err != nil {
					return err
				}
				t := &table{}
				t.add(string(v.ID), string(v.State))
				if err := c.show(v, t); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (c *cli) callsReplay() *cobra.Command {
	var dead bool
	act := c.callsAct("replay ID...", "Queue failed calls again", (*api.Client).ReplayCall)
	one := act.RunE
	act.Args = atLeast(0)
	act.RunE = func(cmd *cobra.Command, args []string) error {
		if dead == (len(args) > 0) {
			return lode.Errorf(lode.Invalid, "name ids, or say --dead for all dead letters")
		}
		if !dead {
			return one(cmd, args)
		}
		client, err := c.api()
		if err != nil {
			return err
		}
		calls, err := api.All(func(p api.Page) (api.List[api.Call], error) {
			return client.ListCalls(cmd.Context(), api.CallFilter{Dead: true}, p)
		})
		if err != nil {
			return err
		}
		var ids []string
		for _, v := range calls {
			ids = append(ids, string(v.ID))
		}
		if len(ids) == 0 {
			c.hint("there are no dead letters")
			return nil
		}
		if err := c.confirm(fmt.Sprintf("queue %d dead letters again?", len(ids))); err != nil {
			return err
		}
		return one(cmd, ids)
	}
	act.Flags().BoolVar(&dead, "dead", false, "all dead letters")
	return act
}
