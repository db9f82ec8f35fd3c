package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

func (c *cli) lsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ls [KIND]", Short: "List what is deployed: functions, agents (their kinds), queues, datasets, or apps", Args: between(0, 1),
		ValidArgs: []string{"functions", "agents", "queues", "datasets", "apps"},
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			word := strings.TrimSuffix(first(args...), "s")
			switch word {
			case "app":
				return c.listApps(cmd.Context(), client)
			case "", string(api.KindFunction), string(api.KindAgent), string(api.KindQueue), string(api.KindDataset):
			default:
				e := lode.Errorf(lode.Invalid, "there is no kind %q", args[0]).WithHint("kinds: functions, agents, queues, datasets, apps")
				if near := lode.Suggest(args[0], []string{"functions", "agents", "queues", "datasets", "apps"}); near != "" {
					e.WithHint("did you mean %q?", near)
				}
				return e
			}
			items, err := api.All(func(p api.Page) (api.List[api.Item], error) {
				return client.ListNames(cmd.Context(), api.ItemKind(word), p)
			})
			if err != nil {
				return err
			}
			t := &table{head: []string{"NAME", "KIND", "REV", "WHERE", "LAST", "CALLS/M"}, none: "nothing is deployed; lode new hello, then lode deploy hello"}
			for _, it := range items {
				rev := "-"
				if it.Rev > 0 {
					rev = fmt.Sprint(it.Rev)
				}
				t.add(string(it.Name), string(it.Kind), rev, dash(strings.Join(it.Where, " ")), ago(it.Last), count(int64(it.Calls)))
			}
			return c.show(api.List[api.Item]{Items: orEmpty(items)}, t)
		},
	}
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (c *cli) listApps(ctx context.Context, client *api.Client) error {
	apps, err := api.All(func(p api.Page) (api.List[api.App], error) { return client.ListApps(ctx, p) })
	if err != nil {
		return err
	}
	t := &table{head: []string{"APP", "DEPLOYED", "NAMES"}, none: "no app is deployed"}
	for _, a := range apps {
		var names []string
		for _, it := range a.Items {
			names = append(names, string(it.Name))
		}
		t.add(string(a.Name), ago(a.Deployed), strings.Join(names, " "))
	}
	return c.show(api.List[api.App]{Items: orEmpty(apps)}, t)
}

func (c *cli) showCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME|KIND/KEY", Short: "Show everything about a name, or an agent", Args: exactly(1), ValidArgsFunction: c.completeNames(""),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.Contains(args[0], "/") {
				return c.showAgent(cmd.Context(), args[0])
			}
			name, client, err := c.named(args[0])
			if err != nil {
				return err
			}
			d, err := client.GetName(cmd.Context(), name)
			if err != nil {
				return err
			}
			t := &table{}
			t.add(string(d.Name), string(d.Kind))
			t.add("app", dash(string(d.App)))
			switch {
			case d.Function != nil:
				functionRows(t, d.Function)
				if d.Kind == api.KindAgent && !c.machine() {
					parts, err := client.ListPartitions(cmd.Context(), name)
					if err != nil {
						c.say("its partitions are not known: %s", lode.AsError(err).Error())
					}
					kindRows(t, d.Function, parts)
				}
			case d.Queue != nil:
				queueRows(t, d.Queue)
			case d.Dataset != nil:
				datasetRows(t, d.Dataset)
			}
			return c.show(d, t)
		},
	}
}

func functionRows(t *table, f *api.Function) {
	fn := f.Live.Function
	t.add("revision", fmt.Sprintf("%d, %s ago", f.Live.Number, ago(f.Live.Created)))
	t.add("code", fmt.Sprintf("%s, %s, %s, %s", dash(fn.Language), fn.Contract, size(fn.Size), fn.Artifact.Short()))
	for i, u := range f.URLs {
		t.add([]string{"url", ""}[min(i, 1)], u)
	}
	t.add("access", string(fn.Access))
	for _, a := range f.Aliases {
		t.add("alias", a.Name+"="+targets(a))
	}
	for _, s := range fn.Schedules {
		t.add("schedule", strings.TrimSpace(s.Cron+" "+s.Zone))
	}
	if fn.Queue != nil {
		t.add("queue", fmt.Sprintf("%s, %d at once", fn.Queue.Queue, fn.Queue.Size))
	}
	if len(fn.Env) > 0 {
		var names []string
		for k := range fn.Env {
			names = append(names, k)
		}
		slices.Sort(names)
		t.add("env", strings.Join(names, " "))
	}
	if len(fn.Secrets) > 0 {
		t.add("secrets", strings.Join(fn.Secrets, " "))
	}
	if len(f.Unset) > 0 {
		t.add("unset", strings.Join(f.Unset, " ")+"  (lode secret set NAME)")
	}
	t.add("egress", strings.TrimSpace(fn.Egress.Mode+" "+strings.Join(fn.Egress.Allow, " ")))
	l := fn.Limits
	t.add("limits", fmt.Sprintf("memory %s, start %s, total %s, idle %s, queue %d", size(l.Memory), span(l.Start), span(l.Total), span(l.Idle), l.QueueMax))
	t.add("sandboxes", fmt.Sprintf("%d busy, %d warm", f.Sandbox.Busy, f.Sandbox.Warm))
}

func queueRows(t *table, q *api.Queue) {
	t.add("waiting", count(q.Depth))
	t.add("in flight", count(q.InFlight))
	t.add("dead", count(q.Dead))
	if q.Oldest > 0 {
		t.add("oldest", span(q.Oldest))
	}
	t.add("keeps", fmt.Sprintf("%s, %s messages, %d attempts", span(q.Spec.Keep), count(q.Spec.Max), q.Spec.Deliver))
	var names []string
	for _, n := range q.Consumers {
		names = append(names, string(n))
	}
	t.add("consumers", dash(strings.Join(names, " ")))
}

func datasetRows(t *table, d *api.Dataset) {
	if d.Version == 0 {
		t.add("version", fmt.Sprintf("none yet: lode data put %s FILES", d.Name))
		return
	}
	t.add("version", fmt.Sprintf("%d, %s ago", d.Version, ago(d.Created)))
	t.add("records", fmt.Sprintf("%s %s", count(d.Count), d.Records))
	t.add("bytes", size(d.Bytes)+" in "+plural(d.Shards, "shard"))
	var kept []string
	for _, v := range d.Versions {
		kept = append(kept, fmt.Sprint(v))
	}
	t.add("kept", dash(strings.Join(kept, " ")))
}

// completeNames completes names of one kind ("": all) in a shell. It gives up
// quickly and quietly.
func (c *cli) completeNames(kind api.ItemKind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		client, err := c.api()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		l, err := client.ListNames(ctx, kind, api.Page{Limit: 1000})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		for _, it := range l.Items {
			out = append(out, cobra.CompletionWithDesc(string(it.Name), string(it.Kind)))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
