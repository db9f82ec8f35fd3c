package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

func (c *cli) rmCmd() *cobra.Command {
	var o api.RemoveOptions
	var undo bool
	cmd := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Take names or apps out of service",
		Long: `Take functions, kinds of agents, queues, datasets or whole apps out of service.

What they hold is kept for seven days, and lode rm --undo NAME brings it back;
--data removes it for ever.`,
		Args:              atLeast(1),
		ValidArgsFunction: c.completeNames(""),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			if undo && o.Data {
				return lode.Errorf(lode.Invalid, "--undo and --data do not go together")
			}
			if o.Data {
				if err := c.confirm(fmt.Sprintf("remove %s and all that it holds, for ever?", strings.Join(args, ", "))); err != nil {
					return err
				}
			}
			for _, a := range args {
				if strings.Contains(a, "/") {
					return lode.Errorf(lode.Invalid, "%s is an agent's address, not a name", a).WithHint("lode agents rm %s removes the agent", a)
				}
				name, err := lode.ParseName(a)
				if err != nil {
					return err
				}
				var r api.Removed
				if undo {
					r, err = client.UndoRemove(cmd.Context(), name)
				} else if r, err = client.RemoveName(cmd.Context(), name, o); lode.KindOf(err) == lode.NotFound {
					r, err = c.removeApp(cmd, client, name, o, err)
				}
				if err != nil {
					return err
				}
				if err := c.showRemoved(r, undo, string(name)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&o.Data, "data", false, "remove state and data too, for ever")
	cmd.Flags().BoolVar(&undo, "undo", false, "bring it back")
	return cmd
}

// removeApp removes the app of a name that names nothing itself.
func (c *cli) removeApp(cmd *cobra.Command, client *api.Client, name lode.Name, o api.RemoveOptions, noName error) (api.Removed, error) {
	app, err := client.GetApp(cmd.Context(), name)
	if err != nil {
		return api.Removed{}, noName
	}
	var names []string
	for _, it := range app.Items {
		names = append(names, string(it.Name))
	}
	if err := c.confirm(fmt.Sprintf("remove the app %s with %s?", name, strings.Join(names, ", "))); err != nil {
		return api.Removed{}, err
	}
	return client.RemoveApp(cmd.Context(), name, o)
}

func (c *cli) showRemoved(r api.Removed, undo bool, name string) error {
	op := "-"
	if undo {
		op = "+"
	}
	t := &table{}
	for _, it := range r.Items {
		t.add(fmt.Sprintf("%s %s %s", op, it.Kind, it.Name), it.Detail)
	}
	if err := c.show(r, t); err != nil {
		return err
	}
	if !undo && !r.Until.IsZero() {
		c.hint("kept until %s: lode rm --undo %s brings it back", r.Until.Local().Format("2006-01-02 15:04"), name)
	}
	return nil
}
