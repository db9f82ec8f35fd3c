package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

func (c *cli) agentsCmd() *cobra.Command {
	return c.group("agents", "Agents: durable objects with a name", c.agentsLs(), c.agentsShow(), c.agentsMove(), c.agentsExport(), c.agentsImport(),
		c.agentsRm(), c.agentsDead(), c.agentsReplay())
}

// address reads the address of an agent.
func address(word string) (lode.Address, error) {
	a, err := lode.ParseAddress(word)
	if err == nil && a.Key == "" {
		err = lode.Errorf(lode.Invalid, "%s is no agent's address", a).WithHint("want KIND/KEY, as in %s/alice", a.Name)
	}
	return a, err
}

// addressed is address, with a client.
func (c *cli) addressed(word string) (lode.Address, *api.Client, error) {
	a, err := address(word)
	if err != nil {
		return a, nil, err
	}
	client, err := c.api()
	return a, client, err
}

func (c *cli) agentsLs() *cobra.Command {
	var partition, limit int
	var partitions bool
	cmd := &cobra.Command{
		Use: "ls [KIND]", Short: "List agents, or the partitions they are in", Args: between(0, 1), ValidArgsFunction: c.completeNames(api.KindAgent),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			var f api.AgentFilter
			if len(args) > 0 {
				if f.Kind, err = lode.ParseName(args[0]); err != nil {
					return err
				}
			}
			if partitions {
				return c.listPartitions(cmd.Context(), client, f.Kind)
			}
			if f.Partition = partition + 1; partition >= 0 && f.Kind == "" {
				return lode.Errorf(lode.Invalid, "--partition %d of which kind?", partition).WithHint("lode agents ls KIND --partition %d", partition)
			}
			l, err := client.ListAgents(cmd.Context(), f, api.Page{Limit: limit})
			if err != nil {
				return err
			}
			t := &table{head: []string{"ADDRESS", "NODE", "PARTITION", "STATE", "LAST", "TIMERS", "WAITING"}, none: "no agents; they come to be when they are called: lode call KIND/KEY METHOD"}
			for _, a := range l.Items {
				t.add(a.Address, dash(a.Node), fmt.Sprint(a.Partition), size(a.Bytes), ago(a.Last), fmt.Sprint(a.Timers), fmt.Sprint(a.Waiting))
			}
			if err := c.show(l, t); err != nil {
				return err
			}
			if len(l.Missing) > 0 {
				c.say("agents of these nodes are missing, as they do not answer or only just take them over: %s", strings.Join(l.Missing, ", "))
			}
			if l.Next != "" && !c.machine() {
				c.hint("there are more: --limit %d", min(2*limit, 1000))
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&partition, "partition", -1, "of this partition of the kind")
	cmd.Flags().BoolVar(&partitions, "partitions", false, "list partitions: who owns them, and what is in them")
	cmd.Flags().IntVar(&limit, "limit", 100, "agents at most, to 1000")
	return cmd
}

func (c *cli) listPartitions(ctx context.Context, client *api.Client, kind lode.Name) error {
	all, err := client.ListPartitions(ctx, kind)
	if err != nil {
		return err
	}
	t := &table{head: []string{"PARTITION", "OWNER", "EPOCH", "STATE", "AGENTS", "BYTES", "TURNS/S", "CPU/TURN", "WAITING"}, none: "no kinds of agents are deployed"}
	for _, p := range all {
		row := []string{fmt.Sprintf("%s %d", p.Kind, p.N), dash(p.Owner), fmt.Sprint(p.Epoch), string(p.State), "?", "?", "?", "?", "?"}
		if p.Answered || p.Owner == "" {
			row = append(row[:4], count(p.Agents), size(p.Bytes), short(p.Turns), span(p.CPU), fmt.Sprint(p.Waiting))
		}
		t.add(row...)
	}
	return c.show(api.List[api.Partition]{Items: orEmpty(all)}, t)
}

func (c *cli) agentsShow() *cobra.Command {
	return &cobra.Command{
		Use: "show KIND/KEY", Short: "Show an agent: its state, timers, sockets and last turns", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.showAgent(cmd.Context(), args[0]) },
	}
}

func (c *cli) showAgent(ctx context.Context, word string) error {
	a, client, err := c.addressed(word)
	if err != nil {
		return err
	}
	v, err := client.GetAgent(ctx, a.Name, a.Key)
	if err != nil {
		return err
	}
	return c.show(v, agentTable(v))
}

func agentTable(v api.AgentDetail) *table {
	t := &table{}
	t.add(v.Address, "agent")
	t.add("node", fmt.Sprintf("%s, partition %d, epoch %d", dash(v.Node), v.Partition, v.Epoch))
	t.add("revision", dash(strings.TrimPrefix(fmt.Sprint(v.Revision), "0")))
	doing := "idle"
	switch {
	case v.Method != "":
		doing = "runs " + v.Method
	case v.Active:
		doing = "in memory"
	}
	if v.Waiting > 0 {
		doing += fmt.Sprintf(", %s waiting", plural(v.Waiting, "message"))
	}
	t.add("now", doing)
	t.add("last turn", ago(v.Last))
	t.add("state", fmt.Sprintf("%s, %s", plural(int(v.Keys), "key"), size(v.Bytes)))
	for _, s := range v.State {
		t.add("  "+stateKey(s), clip(stateValue(s), 100))
	}
	if v.More {
		t.add("  ...", "")
	}
	for i, x := range v.Set {
		failed := ""
		if x.Tries > 0 {
			failed = fmt.Sprintf(", failed %s", plural(x.Tries, "time"))
		}
		t.add(once(i, "timers"), fmt.Sprintf("%s  %s at %s%s", x.Name, x.Method, x.At.Local().Format("2006-01-02 15:04:05"), failed))
	}
	for i, x := range v.Sockets {
		t.add(once(i, "sockets"), strings.TrimSpace(x.Socket+"  "+strings.Join(x.Tags, " ")))
	}
	for i, x := range v.Letters {
		t.add(once(i, "dead"), deadLine(x))
	}
	for i, x := range v.Journal {
		t.add(once(i, "turns"), fmt.Sprintf("%d  %s  %d put, %d deleted, %d sent  %s", x.Position, dash(x.Method), x.Puts, x.Deletes, x.Sends, x.ID))
	}
	return t
}

// once is a word in the first of several rows.
func once(i int, word string) string { return []string{word, ""}[min(i, 1)] }

func stateKey(s api.StateValue) string {
	if len(s.Key64) > 0 {
		return "base64:" + base64.StdEncoding.EncodeToString(s.Key64)
	}
	return s.Key
}

func stateValue(s api.StateValue) string {
	switch {
	case s.Cut:
		return size(s.Size)
	case len(s.JSON) > 0:
		return string(s.JSON)
	case s.Size == 0:
		return "(empty)"
	}
	return "base64:" + base64.StdEncoding.EncodeToString(s.Base64)
}

func deadLine(d api.DeadMessage) string {
	why := ""
	if d.Error != nil {
		why = fmt.Sprintf("%s (%s)", d.Error.Error(), d.Error.Kind)
	}
	return strings.TrimSpace(fmt.Sprintf("%d  %s  %s ago, %s  %s", d.N, first(d.Method, d.Turn), ago(d.At), plural(d.Tries, "try"), clip(why, 80)))
}

func (c *cli) agentsMove() *cobra.Command {
	var partition int
	var to string
	cmd := &cobra.Command{
		Use: "move KIND|KIND/KEY", Short: "Move a partition, or that of an agent, to another node", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := lode.ParseAddress(args[0])
			if err != nil {
				return err
			}
			m := api.AgentMove{Key: a.Key, To: lode.NodeID(to)}
			if partition >= 0 {
				m.Partition = &partition
			}
			if (m.Partition == nil) == (m.Key == "") {
				return lode.Errorf(lode.Invalid, "move which partition?").WithHint("name an agent in it, %s/KEY, or write %s --partition N; lode agents ls --partitions lists them", a.Name, a.Name)
			}
			client, err := c.api()
			if err != nil {
				return err
			}
			p, err := client.MoveAgents(cmd.Context(), a.Name, m)
			if err != nil {
				return err
			}
			t := &table{}
			t.add(fmt.Sprintf("%s %d", p.Kind, p.N), fmt.Sprintf("is on node %s, epoch %d", p.Owner, p.Epoch))
			return c.show(p, t)
		},
	}
	cmd.Flags().IntVar(&partition, "partition", -1, "number of the partition")
	cmd.Flags().StringVar(&to, "to", "", "name of the node; without it placement chooses")
	return cmd
}

func (c *cli) agentsRm() *cobra.Command {
	return &cobra.Command{
		Use: "rm KIND/KEY...", Short: "Remove agents with their state, for ever", Args: atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, word := range args {
				if _, err := address(word); err != nil {
					return err
				}
			}
			if err := c.confirm(fmt.Sprintf("remove %s with all state, for ever?", strings.Join(args, ", "))); err != nil {
				return err
			}
			for _, word := range args {
				a, client, err := c.addressed(word)
				if err != nil {
					return err
				}
				if err := client.RemoveAgent(cmd.Context(), a.Name, a.Key); err != nil {
					return err
				}
				c.say("removed %s", a)
			}
			return nil
		},
	}
}

func (c *cli) agentsDead() *cobra.Command {
	return &cobra.Command{
		Use: "dead KIND/KEY", Short: "List the messages of an agent that failed their last attempt", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, client, err := c.addressed(args[0])
			if err != nil {
				return err
			}
			v, err := client.GetAgent(cmd.Context(), a.Name, a.Key)
			if err != nil {
				return err
			}
			t := &table{head: []string{"N", "METHOD", "FROM", "AGE", "TRIES", "ERROR"}, none: "no dead messages"}
			for _, d := range v.Letters {
				why := ""
				if d.Error != nil {
					why = d.Error.Error()
				}
				t.add(fmt.Sprint(d.N), first(d.Method, d.Turn), first(d.Caller, d.Timer, "-"), ago(d.At), fmt.Sprint(d.Tries), clip(why, 60))
			}
			return c.show(api.List[api.DeadMessage]{Items: orEmpty(v.Letters)}, t)
		},
	}
}

func (c *cli) agentsReplay() *cobra.Command {
	return &cobra.Command{
		Use: "replay KIND/KEY N...", Short: "Make dead messages of an agent messages again", Args: atLeast(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, client, err := c.addressed(args[0])
			if err != nil {
				return err
			}
			t, done := &table{}, []api.DeadMessage{}
			for _, word := range args[1:] {
				n, err := strconv.ParseUint(word, 10, 64)
				if err != nil {
					return lode.Errorf(lode.Invalid, "%q is not the number of a dead message", word).WithHint("lode agents dead %s lists them", a)
				}
				d, err := client.ReplayAgent(cmd.Context(), a.Name, a.Key, n)
				if err != nil {
					return err
				}
				done = append(done, d)
				t.add(word, first(d.Method, d.Turn), "is a message again")
			}
			return c.show(api.List[api.DeadMessage]{Items: done}, t)
		},
	}
}

// kindRows is what show tells of a kind, beside what it tells of functions.
func kindRows(t *table, f *api.Function, parts []api.Partition) {
	s := f.Live.Function.Agent
	if s == nil {
		return
	}
	t.add("methods", dash(strings.Join(methodWords(s), ", ")))
	t.add("partitions", fmt.Sprint(s.Partitions))
	ttl := "never removed"
	if s.TTL > 0 {
		ttl = "removed after " + span(s.TTL)
	}
	t.add("agents", fmt.Sprintf("idle after %s, %s, at most %s of state and %s waiting", span(s.Idle), ttl, size(s.StateMax), plural(s.Mailbox, "message")))
	t.add("re-entry", fmt.Sprintf("%s; reads by %s", first(string(s.Reentrant), string(lode.ReentrantRefuse)), first(string(s.Reads), string(lode.ReadsLease))))
	owned, sum := map[string]int{}, api.Partition{}
	for _, p := range parts {
		owned[first(p.Owner, "nobody")]++
		sum.Agents, sum.Bytes, sum.Turns = sum.Agents+p.Agents, sum.Bytes+p.Bytes, sum.Turns+p.Turns
	}
	if len(parts) == 0 {
		return
	}
	var words []string
	for node, n := range owned {
		words = append(words, fmt.Sprintf("%s %d", node, n))
	}
	slices.Sort(words)
	t.add("now", fmt.Sprintf("%s agents, %s, %s turns/s; partitions: %s", count(sum.Agents), size(sum.Bytes), short(sum.Turns), strings.Join(words, ", ")))
}

// methodWords are the methods of a kind; "(read)" is behind those that only
// read.
func methodWords(s *lode.AgentSpec) []string {
	var out []string
	for _, m := range s.Methods {
		if slices.Contains(s.Read, m) {
			m += " (read)"
		}
		out = append(out, m)
	}
	return out
}

// waitTable is a wait graph: who waits for whom, the oldest wait first.
func waitTable(all []api.Wait) *table {
	t := &table{head: []string{"  WHO", "WAITS FOR", "METHOD", "SINCE", ""}}
	for _, w := range all {
		state := "runs"
		if w.Queued {
			state = "queued"
		}
		t.add("  "+first(w.From, "outside"), w.To, dash(w.Method), ago(w.Since), state)
	}
	return t
}

// dumpJSON is one line of an export file.
func dumpJSON(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "%w", err)
	}
	return append(b, '\n'), nil
}
