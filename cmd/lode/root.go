package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"lode"
	"lode/api"
)

// cli is what all commands share: where to write, what was said, which node.
type cli struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
	release  func() // gives SIGINT back to the system: the next one kills

	flags struct {
		namespace, context, url, output string
		quiet, yes                      bool
	}
	client *api.Client // made on first use
}

func (c *cli) close() {
	if c.client != nil {
		c.client.Close()
	}
}

// root is the tree of commands.
func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lode",
		Short: "Serverless on machines you own",
		Long: `Lode runs functions, durable agents and data jobs in sandboxes, on a laptop or on servers.

  lode dev            a throw-away node that reloads on save
  lode new hello      a first function
  lode deploy hello   build it and put it in service
  lode call hello     call it`,
		SilenceErrors: true, SilenceUsage: true, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
		PersistentPreRunE: func(*cobra.Command, []string) error { return c.checkGlobal() },
	}
	f := root.PersistentFlags()
	f.StringVarP(&c.flags.namespace, "namespace", "n", "", "namespace (LODE_NAMESPACE)")
	f.StringVar(&c.flags.context, "context", "", "context of the config file (LODE_CONTEXT)")
	f.StringVar(&c.flags.url, "url", "", "the node, or several of a cluster with commas (LODE_URL); the token is in LODE_TOKEN")
	f.StringVarP(&c.flags.output, "output", "o", "", "table, json, yaml or name (LODE_OUTPUT)")
	f.BoolVarP(&c.flags.quiet, "quiet", "q", false, "no progress and no hints")
	f.BoolVarP(&c.flags.yes, "yes", "y", false, "answer questions with yes")
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.HiddenDefaultCmd = false
	for _, add := range []func() *cobra.Command{
		c.upCmd, c.devCmd, c.newCmd, c.deployCmd, c.rmCmd, c.rollbackCmd, c.historyCmd, c.aliasCmd, c.lsCmd, c.showCmd,
		c.callCmd, c.callsCmd, c.agentsCmd, c.runCmd, c.jobsCmd, c.dataCmd, c.secretCmd, c.tokenCmd, c.loginCmd, c.contextCmd,
		c.logsCmd, c.topCmd, c.explainCmd, c.nodesCmd, c.drainCmd, c.undrainCmd, c.doctorCmd, c.versionCmd, c.benchCmd, c.demoCmd, c.workerCmd,
	} {
		root.AddCommand(add())
	}
	return root
}

// laterCommands are words of the documentation that this version does not
// have, with what does work.
var laterCommands = map[string]string{
	"backup": "stop the node and copy its data folder", "restore": "copy the data folder back and start the node", "upgrade": "stop the node and start the new binary",
	"systemd": "run lode up from a unit of your own", "connect": "services come later", "sql": "lode run does one step over a dataset", "sim": "lode bench measures this machine",
}

func unknownCommand(cmd *cobra.Command, word string) error {
	if hint, ok := laterCommands[word]; ok && !cmd.HasParent() {
		return lode.Errorf(lode.Invalid, "this version of Lode has no %s yet", word).WithHint("%s", hint)
	}
	var names []string
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			names = append(names, sub.Name())
			names = append(names, sub.Aliases...)
		}
	}
	e := lode.Errorf(lode.Invalid, "%s has no command %q", cmd.CommandPath(), word).WithHint("%s --help lists them", cmd.CommandPath())
	if near := lode.Suggest(word, names); near != "" {
		e.WithHint("did you mean %q?", near)
	}
	return e
}

// group makes a command that only holds others.
func (c *cli) group(use, short string, subs ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		return cmd.Help()
	}}
	g.AddCommand(subs...)
	return g
}

// flagError names the flag that was meant.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	e := lode.Errorf(lode.Invalid, "%s: %w", cmd.CommandPath(), err).WithHint("%s --help lists the flags", cmd.CommandPath())
	if word, ok := strings.CutPrefix(err.Error(), "unknown flag: --"); ok {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := lode.Suggest(word, names); near != "" {
			e.WithHint("did you mean --%s?", near)
		}
	}
	return e
}

// between counts arguments (hi < 0: no limit); the error shows the usage.
func between(lo, hi int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= lo && (hi < 0 || len(args) <= hi) {
			return nil
		}
		what := fmt.Sprintf("%d to %d arguments", lo, hi)
		if lo == 0 && hi == 1 {
			what = "at most one argument"
		}
		switch {
		case lo == hi && lo == 0:
			what = "no arguments"
		case lo == hi && lo == 1:
			what = "one argument"
		case lo == hi:
			what = fmt.Sprintf("%d arguments", lo)
		case hi < 0:
			what = "at least one argument"
			if lo > 1 {
				what = fmt.Sprintf("at least %d arguments", lo)
			}
		}
		return lode.Errorf(lode.Invalid, "%s takes %s, not %d", cmd.CommandPath(), what, len(args)).WithHint("usage: %s", cmd.UseLine())
	}
}

func exactly(n int) cobra.PositionalArgs { return between(n, n) }
func atLeast(n int) cobra.PositionalArgs { return between(n, -1) }

func (c *cli) checkGlobal() error {
	if c.flags.output == "" {
		c.flags.output = c.getenv("LODE_OUTPUT")
	}
	switch c.flags.output {
	case "", "table", "json", "yaml", "name":
	default:
		bad := c.flags.output
		c.flags.output = ""
		e := lode.Errorf(lode.Invalid, "there is no output %q", bad).WithHint("outputs: table, json, yaml, name")
		if near := lode.Suggest(bad, []string{"table", "json", "yaml", "name"}); near != "" {
			e.WithHint("did you mean -o %s?", near)
		}
		return e
	}
	return nil
}
