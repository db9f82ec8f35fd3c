package main

import (
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lode"
)

// report is what a bench or the demo found.
type report interface {
	WriteTable(io.Writer) error
	WriteJSON(io.Writer) error
}

// benchOptions are what the command decides about a bench.
type benchOptions struct {
	rounds int
	each   time.Duration
	log    io.Writer // progress; nil: none
}

func (c *cli) benchCmd() *cobra.Command {
	var o benchOptions
	names, helps := benches()
	var lines []string
	for i, n := range names {
		lines = append(lines, "  "+n+strings.Repeat(" ", max(1, 10-len(n)))+helps[i])
	}
	cmd := &cobra.Command{
		Use: "bench NAME", Short: "Measure this machine", Args: exactly(1), ValidArgs: names,
		Long: "Run one bench: both sides of a comparison in turn, medians with their spread.\n\n" + strings.Join(lines, "\n"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.report(func(log io.Writer) (report, error) {
				o.log = log
				return runBench(cmd.Context(), args[0], o)
			})
		},
	}
	cmd.Flags().IntVar(&o.rounds, "rounds", 0, "rounds of each side (default 5)")
	cmd.Flags().DurationVar(&o.each, "each", 0, "time of each side and round (default: the bench's own)")
	cmd.AddCommand(&cobra.Command{
		Use: "child ROLE [ARG...]", Hidden: true, Args: atLeast(1), DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return benchChild(cmd.Context(), args[0], args[1:], c.out)
		},
	})
	return cmd
}

func (c *cli) demoCmd() *cobra.Command {
	return &cobra.Command{
		Use: "demo", Short: "Real mails and Go's own sources: functions and jobs, timed against two other ways", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.report(func(log io.Writer) (report, error) { return runDemo(cmd.Context(), log) })
		},
	}
}

// report runs something that ends in a report, and prints it.
func (c *cli) report(run func(log io.Writer) (report, error)) error {
	var log io.Writer
	if !c.flags.quiet {
		log = c.err
	}
	r, err := run(log)
	if err != nil {
		return lode.AsError(err)
	}
	if c.flags.output == "json" {
		return written(r.WriteJSON(c.out))
	}
	return written(r.WriteTable(c.out))
}

// workerCmd is what a node starts to run jobs in a process of their own.
func (c *cli) workerCmd() *cobra.Command {
	return &cobra.Command{
		Use: "worker", Hidden: true, Args: cobra.ArbitraryArgs, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runWorker(cmd.Context(), args, c.in, c.out)
		},
	}
}
