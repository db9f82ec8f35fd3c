package main

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

// callAgent is lode call of an address: KIND/KEY METHOD and its arguments.
func (c *cli) callAgent(cmd *cobra.Command, to lode.Address, words []string, v api.Invocation, raw, include bool) error {
	for _, flag := range []string{"alias", "method", "path"} {
		if cmd.Flags().Changed(flag) {
			return lode.Errorf(lode.Invalid, "--%s is for functions, and %s is an agent", flag, to).WithHint("usage: lode call %s METHOD WORD...", to)
		}
	}
	client, err := c.api()
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return c.whichMethod(cmd.Context(), client, to)
	}
	if err := c.body(&v, words[1:], raw); err != nil {
		return err
	}
	if ct := v.Header.Get("Content-Type"); ct != "" {
		v.Type = ct
	}
	call := api.AgentInvocation{Address: to, Method: words[0], Type: v.Type, Body: v.Body, Header: v.Header, Key: v.Key, Deadline: v.Deadline, Async: v.Async}
	ctx, cancel := withinCall(cmd.Context(), v.Deadline)
	defer cancel()
	a, err := client.CallAgent(ctx, call)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if v.Async {
		return c.posted(a, to)
	}
	if err := refusal(a); err != nil && !include {
		return err
	}
	return c.printAnswer(a, to.String()+" "+words[0], include)
}

// posted prints the id of a message that nobody waits for.
func (c *cli) posted(a *api.Answer, to lode.Address) error {
	io.Copy(io.Discard, a.Body)
	t := &table{}
	t.add(string(a.ID))
	if err := c.show(map[string]any{"id": a.ID, "state": lode.StateQueued}, t); err != nil {
		return err
	}
	c.hint("lode show %s tells what became of it", to)
	return nil
}

// whichMethod refuses a call without a method, and says which there are.
func (c *cli) whichMethod(ctx context.Context, client *api.Client, to lode.Address) error {
	d, err := client.GetName(ctx, to.Name)
	if err != nil {
		return err
	}
	if d.Function == nil || d.Function.Live.Function.Agent == nil {
		return lode.Errorf(lode.NotFound, "%s is a %s, not a kind of agents", to.Name, d.Kind).WithHint("lode show %s", to.Name)
	}
	e := lode.Errorf(lode.Invalid, "call which method of %s?", to)
	if words := methodWords(d.Function.Live.Function.Agent); len(words) > 0 {
		return e.WithHint("methods: %s", strings.Join(words, ", "))
	}
	return e.WithHint("lode call %s METHOD WORD...", to)
}

// completeAddresses completes what can be called: functions, and kinds with a
// slash behind them.
func (c *cli) completeCallable(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	functions, how := c.completeNames(api.KindFunction)(cmd, args, word)
	kinds, _ := c.completeNames(api.KindAgent)(cmd, args, word)
	for _, k := range kinds {
		name, about, _ := strings.Cut(k, "\t")
		functions = append(functions, cobra.CompletionWithDesc(name+"/", about))
	}
	return slices.Compact(functions), how | cobra.ShellCompDirectiveNoSpace
}
