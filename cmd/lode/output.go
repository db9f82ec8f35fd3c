package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"

	"lode"
	"lode/cmd/spec"
)

// table is a listing: a head and rows of the same length. The first column is
// what -o name prints.
type table struct {
	head []string
	rows [][]string
	none string // said on stderr when there are no rows
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// show writes v in the form that was asked for; t is its table.
func (c *cli) show(v any, t *table) error {
	switch c.flags.output {
	case "json":
		enc := json.NewEncoder(c.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return written(enc.Encode(v))
	case "yaml":
		b, err := toYAML(v)
		if err != nil {
			return err
		}
		_, err = c.out.Write(b)
		return written(err)
	case "name":
		for _, r := range t.rows {
			fmt.Fprintln(c.out, r[0])
		}
		return nil
	}
	if len(t.rows) == 0 && t.none != "" {
		c.hint("%s", t.none)
		return nil
	}
	return written(t.write(c.out))
}

func (t *table) write(w io.Writer) error {
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	if len(t.head) > 0 {
		fmt.Fprintln(tw, strings.Join(t.head, "\t"))
	}
	for _, r := range t.rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	tw.Flush()
	for line := range strings.Lines(b.String()) {
		if _, err := io.WriteString(w, strings.TrimRight(line, " \n")+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// written classes what writing to stdout ended with.
func written(err error) error {
	if err != nil {
		return lode.Errorf(lode.Internal, "write: %w", err)
	}
	return nil
}

// toYAML writes v with the words and the order of its JSON.
func toYAML(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "%w", err)
	}
	var n yaml.Node
	if err := yaml.Unmarshal(b, &n); err != nil { // JSON is YAML
		return nil, lode.Errorf(lode.Internal, "%w", err)
	}
	block(&n)
	return yaml.Marshal(&n)
}

// block takes the style of JSON from nodes.
func block(n *yaml.Node) {
	n.Style = 0
	for _, k := range n.Content {
		block(k)
	}
}

// machine reports whether stdout is for a program.
func (c *cli) machine() bool { return c.flags.output == "json" || c.flags.output == "yaml" }

// say writes a line for a person to stderr, hint one that -q drops too.
func (c *cli) say(format string, args ...any) {
	if !c.flags.quiet {
		fmt.Fprintf(c.err, format+"\n", args...)
	}
}

func (c *cli) hint(format string, args ...any) { c.say(format, args...) }

// printError writes an error as the documentation has it; with -o json the
// problem object goes to stdout.
func (c *cli) printError(e *lode.Error) {
	if c.flags.output == "json" {
		b, err := json.MarshalIndent(e, "", "  ")
		if err == nil {
			c.out.Write(append(b, '\n'))
			return
		}
	}
	red, off := "", ""
	if c.colour() {
		red, off = "\x1b[31m", "\x1b[0m"
	}
	if ps, ok := errors.AsType[*spec.Problems](e.Err); ok {
		for _, p := range ps.List {
			fmt.Fprintf(c.err, "%serror:%s %s (%s)\n", red, off, p, e.Kind)
			if p.Hint != "" {
				fmt.Fprintf(c.err, "hint:  %s\n", p.Hint)
			}
		}
		if ps.More > 0 {
			fmt.Fprintf(c.err, "and %d more\n", ps.More)
		}
		return
	}
	fmt.Fprintf(c.err, "%serror:%s %s (%s)\n", red, off, e.Error(), e.Kind)
	if g := e.Guest; g != nil {
		fmt.Fprintf(c.err, "guest: %s: %s\n", g.Type, g.Message)
		for _, l := range g.Stack {
			fmt.Fprintf(c.err, "       %s\n", l)
		}
	}
	if e.Hint != "" {
		fmt.Fprintf(c.err, "hint:  %s\n", e.Hint)
	}
	if e.Trace != "" {
		short := e.Trace[:min(8, len(e.Trace))]
		fmt.Fprintf(c.err, "trace: %s  (lode explain %s)\n", short, short)
	}
}

// colour reports whether stderr takes colour.
func (c *cli) colour() bool {
	return c.getenv("NO_COLOR") == "" && c.getenv("TERM") != "dumb" && isTerminal(c.err)
}

// size is bytes for people: 2.3 MB of code, 1.2 GiB of data.
func size(n int64) string {
	const units = "KMGTP"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1023.95 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if v < 10 {
		return fmt.Sprintf("%.1f %ciB", v, units[i])
	}
	return fmt.Sprintf("%.0f %ciB", v, units[i])
}

// span is a duration for people.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%d us", d.Microseconds())
	case d < time.Second:
		return short(float64(d)/float64(time.Millisecond)) + " ms"
	case d < time.Minute:
		return short(d.Seconds()) + " s"
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// short is a number with at most one decimal, none from 100 on.
func short(v float64) string {
	if v >= 99.95 {
		return fmt.Sprintf("%.0f", v)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
}

// ago is how long ago t was.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Since(t)
	if d < time.Second {
		return "0 s"
	}
	if d < time.Minute {
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	return span(d)
}

// count is a number with commas.
func count(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// plural is "1 shard", "2 shards".
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
