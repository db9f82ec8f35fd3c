package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

func (c *cli) rollbackCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rollback NAME [REV]", Short: "Make an older revision live", Args: between(1, 2), ValidArgsFunction: c.completeNames(""),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := lode.ParseName(args[0])
			if err != nil {
				return err
			}
			rev := 0
			if len(args) > 1 {
				if rev, err = strconv.Atoi(args[1]); err != nil || rev < 1 {
					return lode.Errorf(lode.Invalid, "%q is not a revision", args[1]).WithHint("lode history %s lists them", name)
				}
			}
			client, err := c.api()
			if err != nil {
				return err
			}
			f, err := client.Rollback(cmd.Context(), name, rev, "")
			if err != nil {
				return err
			}
			t := &table{}
			t.add(string(name), fmt.Sprintf("live is rev %d", f.Live.Number), first(f.URLs...))
			return c.show(f, t)
		},
	}
}

func (c *cli) historyCmd() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "history NAME", Short: "List the revisions of a function or a kind of agents", Args: exactly(1), ValidArgsFunction: c.completeNames(""),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, client, err := c.named(args[0])
			if err != nil {
				return err
			}
			l, err := client.History(cmd.Context(), name, api.Page{Limit: limit})
			if err != nil {
				return err
			}
			d, err := client.GetName(cmd.Context(), name)
			if err != nil {
				return err
			}
			t := &table{head: []string{"REV", "LIVE", "AGE", "ALIASES", "CODE", "SIZE"}}
			for _, r := range l.Items {
				live, aliases := revAliases(d.Function, r.Number)
				t.add(strconv.Itoa(r.Number), live, ago(r.Created), dash(aliases), r.Function.Artifact.Short(), size(r.Function.Size))
			}
			return c.show(l, t)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 50, "revisions at most")
	return cmd
}

// revAliases is a revision's share of live, and the other aliases that name it.
func revAliases(f *api.Function, rev int) (live, others string) {
	if f == nil {
		return "", ""
	}
	var words []string
	for _, a := range f.Aliases {
		for _, t := range a.Targets {
			switch {
			case t.Rev != rev:
			case a.Name == lode.LiveAlias:
				live = fmt.Sprintf("%d%%", t.Weight)
			case t.Weight == 100:
				words = append(words, a.Name)
			default:
				words = append(words, fmt.Sprintf("%s %d%%", a.Name, t.Weight))
			}
		}
	}
	if live == "" && f.Live.Number == rev {
		live = "100%"
	}
	return live, strings.Join(words, ", ")
}

func (c *cli) aliasCmd() *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use:   "alias NAME ALIAS=REV[:WEIGHT],...",
		Short: "Point an alias at revisions",
		Long: `Point an alias at one revision, or share it between several by weight.

  lode alias web canary=7            calls with ?alias=canary get revision 7
  lode alias web live=6:90,7:10      one call in ten gets revision 7
  lode alias web --rm canary`,
		Args: exactly(2), ValidArgsFunction: c.completeNames(api.KindFunction),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := lode.ParseName(args[0])
			if err != nil {
				return err
			}
			a := lode.Alias{Name: args[1]}
			if !remove {
				if a, err = parseAlias(args[1]); err != nil {
					return err
				}
			}
			client, err := c.api()
			if err != nil {
				return err
			}
			f, err := client.SetAlias(cmd.Context(), name, a, "")
			if err != nil {
				return err
			}
			return c.show(f, aliasTable(f))
		},
	}
	cmd.Flags().BoolVar(&remove, "rm", false, "remove the alias")
	return cmd
}

// parseAlias reads "live=6:90,7:10"; one revision alone has all the weight.
func parseAlias(s string) (lode.Alias, error) {
	const hint = "want ALIAS=REV, or ALIAS=REV:WEIGHT,REV:WEIGHT with weights that add up to 100"
	name, list, ok := strings.Cut(s, "=")
	if !ok || list == "" {
		return lode.Alias{}, lode.Errorf(lode.Invalid, "%q sets no alias", s).WithHint(hint)
	}
	a := lode.Alias{Name: name}
	for part := range strings.SplitSeq(list, ",") {
		rev, weight, weighted := strings.Cut(part, ":")
		t := lode.Target{Weight: 100}
		var err error
		if t.Rev, err = strconv.Atoi(rev); err == nil && weighted {
			t.Weight, err = strconv.Atoi(weight)
		}
		if err != nil {
			return a, lode.Errorf(lode.Invalid, "%q is no revision with a weight", part).WithHint(hint)
		}
		a.Targets = append(a.Targets, t)
	}
	return a, api.CheckAlias(a)
}

func aliasTable(f api.Function) *table {
	t := &table{head: []string{"ALIAS", "REVISIONS"}}
	for _, a := range f.Aliases {
		t.add(a.Name, targets(a))
	}
	return t
}

func targets(a lode.Alias) string {
	var words []string
	for _, x := range a.Targets {
		words = append(words, fmt.Sprintf("%d:%d", x.Rev, x.Weight))
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}
