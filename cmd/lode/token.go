package main

import (
	"time"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
	"lode/cmd/spec"
)

func (c *cli) tokenCmd() *cobra.Command {
	ls := &cobra.Command{
		Use: "ls", Short: "List tokens", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			all, err := api.All(func(p api.Page) (api.List[api.Token], error) { return client.ListTokens(cmd.Context(), p) })
			if err != nil {
				return err
			}
			t := &table{head: []string{"ID", "ROLE", "NAMESPACE", "AGE", "EXPIRES", "LAST", "NOTE"}, none: "no tokens"}
			for _, k := range all {
				expires := "never"
				if !k.Expires.IsZero() {
					expires = "in " + span(time.Until(k.Expires))
				}
				t.add(k.ID, string(k.Role), first(string(k.Namespace), "any"), ago(k.Created), expires, ago(k.Last), k.Note)
			}
			return c.show(api.List[api.Token]{Items: orEmpty(all)}, t)
		},
	}
	revoke := &cobra.Command{
		Use: "revoke ID...", Short: "Revoke tokens", Args: atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			for _, id := range args {
				if full, ok := api.TokenID(id); ok {
					id = full
				}
				if err := client.RevokeToken(cmd.Context(), id); err != nil {
					return err
				}
			}
			return nil
		},
	}
	return c.group("token", "Tokens for people and programs: create, ls, revoke", c.tokenCreate(), ls, revoke)
}

func (c *cli) tokenCreate() *cobra.Command {
	var s api.TokenSpec
	var role, ns, life string
	var join bool
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token; it is shown once", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if join {
				return lode.Errorf(lode.Invalid, "this version of Lode has no join tokens yet").WithHint("one node is a whole Lode")
			}
			s.Role, s.Namespace = api.Role(role), lode.Namespace(ns)
			if life != "" {
				d, err := spec.ParseDuration(life)
				if err != nil {
					return lode.Errorf(lode.Invalid, "--for: %w", err).WithHint("as in 30d or 12h")
				}
				s.For = d
			}
			client, err := c.api()
			if err != nil {
				return err
			}
			k, err := client.CreateToken(cmd.Context(), s)
			if err != nil {
				return err
			}
			t := &table{}
			t.add(k.Secret)
			if k.AWSAccessKey != "" {
				t.add("AWS_ACCESS_KEY_ID=" + k.AWSAccessKey)
				t.add("AWS_SECRET_ACCESS_KEY=" + k.AWSSecretKey)
			}
			if err := c.show(k, t); err != nil {
				return err
			}
			c.hint("it is shown this once; lode token revoke %s takes it back", k.ID)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", string(api.RoleCall), "admin, deploy, call or read")
	f.StringVar(&ns, "ns", "", "for this namespace alone (default: any)")
	f.StringVar(&life, "for", "", "how long it holds, as in 30d (default: until revoked)")
	f.StringVar(&s.Note, "note", "", "what it is for")
	f.BoolVar(&s.AWS, "aws", false, "also make a key pair for the AWS SDKs")
	f.BoolVar(&join, "join", false, "a token for a new node")
	return cmd
}
