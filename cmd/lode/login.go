package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

func (c *cli) loginCmd() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "login URL[,URL...]", Short: "Save a node, or several of a cluster, and a token as a context; the token comes from stdin", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := c.value("token")
			if err != nil {
				return err
			}
			client, err := api.New(api.Config{URL: args[0], Token: string(token)})
			if err != nil {
				return err
			}
			defer client.Close()
			who, err := client.WhoAmI(cmd.Context())
			if err != nil {
				return err
			}
			cf, err := c.readConfig()
			if err != nil {
				return err
			}
			if name == "" {
				name = contextName(args[0])
			}
			cf.Contexts[name] = &savedNode{URL: args[0], Token: string(token), Namespace: first(c.flags.namespace, string(who.Namespace))}
			cf.Current = name
			if err := c.writeConfig(cf); err != nil {
				return err
			}
			c.say("context %s is in use: %s, role %s", name, args[0], who.Role)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the context (default: the host)")
	return cmd
}

// contextName is the host of a URL, or of the first of several.
func contextName(url string) string {
	url, _, _ = strings.Cut(url, ",")
	_, host, ok := strings.Cut(url, "://")
	if !ok {
		host = url
	}
	host, _, _ = strings.Cut(host, "/")
	return host
}

func noContext(cf *configFile, name string) error {
	names := slices.Sorted(maps.Keys(cf.Contexts))
	e := lode.Errorf(lode.NotFound, "there is no context %q", name).WithHint("lode login URL makes one")
	if len(names) > 0 {
		e.WithHint("contexts: %s", strings.Join(names, ", "))
	}
	if near := lode.Suggest(name, names); near != "" {
		e.WithHint("did you mean %q?", near)
	}
	return e
}

func (c *cli) contextCmd() *cobra.Command {
	ls := &cobra.Command{
		Use: "ls", Short: "List contexts", Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			cf, err := c.readConfig()
			if err != nil {
				return err
			}
			type line struct {
				Name    string `json:"name"`
				Current bool   `json:"current"`
				savedNode
			}
			out := []line{}
			t := &table{head: []string{"NAME", "CURRENT", "URL", "NAMESPACE"}, none: "no contexts; commands go to the node on this machine"}
			for _, n := range slices.Sorted(maps.Keys(cf.Contexts)) {
				mark := ""
				if n == cf.Current {
					mark = "*"
				}
				out = append(out, line{n, n == cf.Current, *cf.Contexts[n]})
				t.add(n, mark, cf.Contexts[n].URL, dash(cf.Contexts[n].Namespace))
			}
			return c.show(out, t)
		},
	}
	use := &cobra.Command{
		Use: "use NAME", Short: "Use a context from now on; - uses none", Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.changeContexts(args[0], func(cf *configFile) { cf.Current = args[0] }, func(cf *configFile) { cf.Current = "" })
		},
	}
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Forget a context and its token", Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.changeContexts(args[0], func(cf *configFile) {
				delete(cf.Contexts, args[0])
				if cf.Current == args[0] {
					cf.Current = ""
				}
			}, nil)
		},
	}
	return c.group("context", "Saved nodes: ls, use, rm", ls, use, rm)
}

// changeContexts changes the file for a context that is there; none is what
// "-" does.
func (c *cli) changeContexts(name string, change, none func(*configFile)) error {
	cf, err := c.readConfig()
	if err != nil {
		return err
	}
	switch _, ok := cf.Contexts[name]; {
	case name == "-" && none != nil:
		none(cf)
	case !ok:
		return noContext(cf, name)
	default:
		change(cf)
	}
	return c.writeConfig(cf)
}
