package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

func (c *cli) agentsExport() *cobra.Command {
	return &cobra.Command{
		Use: "export KIND [FILE]", Short: "Write every agent of a kind, with its state, as lines of JSON", Args: between(1, 2), ValidArgsFunction: c.completeNames(api.KindAgent),
		Long: `Write every agent of a kind with its state and timers, one JSON object a line, to a
file or to standard output. A file is there whole or not at all. Each agent is as
it was between two of its turns; agents are not all of the same moment.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, client, err := c.named(args[0])
			if err != nil {
				return err
			}
			if len(args) == 1 || args[1] == "-" {
				return c.exportTo(cmd.Context(), client, kind, c.out)
			}
			f, err := os.CreateTemp(filepath.Dir(args[1]), "."+filepath.Base(args[1])+"-")
			if err != nil {
				return lode.Errorf(lode.Invalid, "%w", err)
			}
			defer os.Remove(f.Name()) // what is left of it
			err = c.exportTo(cmd.Context(), client, kind, f)
			if cerr := f.Close(); err == nil && cerr != nil {
				err = lode.Errorf(lode.Full, "%w", cerr)
			}
			if err != nil {
				return err
			}
			if err := os.Rename(f.Name(), args[1]); err != nil {
				return lode.Errorf(lode.Invalid, "%w", err)
			}
			return nil
		},
	}
}

func (c *cli) exportTo(ctx context.Context, client *api.Client, kind lode.Name, to io.Writer) error {
	w := bufio.NewWriter(to)
	agents, bytes := int64(0), int64(0)
	line := func(v any) error {
		b, err := dumpJSON(v)
		if err != nil {
			return err
		}
		bytes += int64(len(b))
		_, err = w.Write(b)
		return written(err)
	}
	end, err := client.ExportAgents(ctx, kind, func(d api.AgentDump) error {
		if d.Part == 0 {
			agents++
		}
		return line(d)
	})
	if err != nil {
		return err
	}
	if err := line(map[string]api.ExportEnd{"end": end}); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return written(err)
	}
	c.say("%s agents, %s", count(agents), size(bytes))
	return nil
}

func (c *cli) agentsImport() *cobra.Command {
	var o api.ImportOptions
	cmd := &cobra.Command{
		Use: "import KIND FILE|-", Short: "Make agents of the lines of an export", Args: exactly(2), ValidArgsFunction: c.completeNames(api.KindAgent),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, client, err := c.named(args[0])
			if err != nil {
				return err
			}
			in := c.in
			if args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return lode.Errorf(lode.NotFound, "%w", err)
				}
				defer f.Close()
				if err := wholeExport(f); err != nil {
					return err
				}
				in = f
			}
			v, err := client.ImportAgents(cmd.Context(), kind, in, o)
			if err != nil {
				return err
			}
			t := &table{}
			t.add(string(kind), fmt.Sprintf("%s agents, %s keys, %s timers, %s", count(v.Agents), count(v.Keys), count(v.Timers), size(v.Bytes)))
			return c.show(v, t)
		},
	}
	cmd.Flags().BoolVar(&o.Replace, "replace", false, "agents that are there become what the lines say")
	return cmd
}

// wholeExport checks that a file ends as an export does, and goes back to its
// beginning.
func wholeExport(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return lode.Errorf(lode.Invalid, "%w", err)
	}
	tail := make([]byte, min(info.Size(), 1<<20))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil && err != io.EOF {
		return lode.Errorf(lode.Invalid, "%w", err)
	}
	tail = bytes.TrimSpace(tail)
	if last := tail[bytes.LastIndexByte(tail, '\n')+1:]; !bytes.HasPrefix(last, []byte(`{"end":`)) {
		return lode.Errorf(lode.Invalid, "%s was cut short: the last line of an export says what is in it", f.Name()).
			WithHint("export again; or, if you made the file yourself, pipe it: lode agents import KIND - < %s", f.Name())
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
