package main

import (
	"strings"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

func (c *cli) secretCmd() *cobra.Command {
	set := &cobra.Command{
		Use: "set NAME", Short: "Set a secret; the value comes from stdin", Args: exactly(1),
		Long: "Set a secret. The value comes from stdin, never from the command line:\n\n  printf %s \"$KEY\" | lode secret set STRIPE_KEY",
		RunE: func(cmd *cobra.Command, args []string) error {
			if name, _, ok := strings.Cut(args[0], "="); ok {
				return lode.Errorf(lode.Invalid, "the value of a secret is not an argument: it would stay in the shell's history").WithHint("printf %%s \"$VALUE\" | lode secret set %s", name)
			}
			if err := api.CheckSecretName(args[0]); err != nil {
				return err
			}
			client, err := c.api()
			if err != nil {
				return err
			}
			v, err := c.value("value of " + args[0])
			if err != nil {
				return err
			}
			if err := client.SetSecret(cmd.Context(), args[0], v); err != nil {
				return err
			}
			c.say("secret %s is set", args[0])
			return nil
		},
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List names of secrets", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			all, err := api.All(func(p api.Page) (api.List[api.Secret], error) { return client.ListSecrets(cmd.Context(), p) })
			if err != nil {
				return err
			}
			t := &table{head: []string{"NAME", "AGE", "USED BY"}, none: "no secrets"}
			for _, s := range all {
				var by []string
				for _, n := range s.UsedBy {
					by = append(by, string(n))
				}
				t.add(s.Name, ago(s.Updated), dash(strings.Join(by, " ")))
			}
			return c.show(api.List[api.Secret]{Items: orEmpty(all)}, t)
		},
	}
	rm := &cobra.Command{
		Use: "rm NAME...", Short: "Remove secrets", Args: atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := client.RemoveSecret(cmd.Context(), name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	return c.group("secret", "Secrets of functions: set, ls, rm", set, ls, rm)
}
