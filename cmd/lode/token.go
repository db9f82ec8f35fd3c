package main

import (
	"context"
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
				role := string(k.Role)
				if k.Join {
					role = "join, " + plural(k.Uses, "node")
				}
				if k.AWS != "" {
					role += ", aws"
				}
				t.add(k.ID, role, first(string(k.Namespace), "any"), ago(k.Created), expires, ago(k.Last), k.Note)
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

// tokenFlags are the flags of lode token create.
type tokenFlags struct {
	role, ns, life, note string
	aws, join            bool
	uses                 int
}

func (c *cli) tokenCreate() *cobra.Command {
	var f tokenFlags
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token; it is shown once", Args: exactly(0),
		Long: `Make a token for a person or a program, or one that lets a node join.

  lode token create --role deploy --ns team-a --for 30d --note ci
  lode token create --aws                       with a key pair for the AWS SDKs
  lode token create --join --uses 2 --for 1h    for two new nodes`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var life time.Duration
			if f.life != "" {
				var err error
				if life, err = spec.ParseDuration(f.life); err != nil {
					return lode.Errorf(lode.Invalid, "--for: %w", err).WithHint("as in 30d or 12h")
				}
			}
			if f.join {
				for _, other := range []string{"role", "ns", "note", "aws"} {
					if cmd.Flags().Changed(other) {
						return lode.Errorf(lode.Invalid, "--%s does not go with --join: a join token lets nodes in, and does nothing else", other)
					}
				}
				return c.createJoin(cmd.Context(), api.JoinSpec{Uses: f.uses, For: life})
			}
			if cmd.Flags().Changed("uses") {
				return lode.Errorf(lode.Invalid, "--uses is for --join: other tokens are good until they expire or are revoked")
			}
			return c.createToken(cmd.Context(), api.TokenSpec{Role: api.Role(f.role), Namespace: lode.Namespace(f.ns), For: life, Note: f.note, AWS: f.aws})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.role, "role", string(api.RoleCall), "admin, deploy, call or read")
	fl.StringVar(&f.ns, "ns", "", "for this namespace alone (default: any)")
	fl.StringVar(&f.life, "for", "", "how long it holds, as in 30d (default: until revoked; with --join 1h)")
	fl.StringVar(&f.note, "note", "", "what it is for")
	fl.BoolVar(&f.aws, "aws", false, "also make a key pair for the AWS SDKs")
	fl.BoolVar(&f.join, "join", false, "a token that lets new nodes into the cluster")
	fl.IntVar(&f.uses, "uses", 1, "with --join: how many nodes")
	return cmd
}

func (c *cli) createToken(ctx context.Context, s api.TokenSpec) error {
	client, err := c.api()
	if err != nil {
		return err
	}
	k, err := client.CreateToken(ctx, s)
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
}

func (c *cli) createJoin(ctx context.Context, s api.JoinSpec) error {
	client, err := c.api()
	if err != nil {
		return err
	}
	k, err := client.CreateJoinToken(ctx, s)
	if err != nil {
		return err
	}
	if err := c.show(k, nameOnly(k.Token)); err != nil {
		return err
	}
	c.hint("for %s, until %s; whoever has it gets the cluster's keys. On the new machine:\n  %s", plural(k.Uses, "node"), k.Expires.Local().Format("15:04 on 2 January"), k.Command)
	return nil
}
