package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

// argsType is the media type of a list of arguments.
const argsType = "application/vnd.lode.args+json"

func (c *cli) callCmd() *cobra.Command {
	var v api.Invocation
	var headers []string
	var raw, include bool
	cmd := &cobra.Command{
		Use:     "call NAME|KIND/KEY [METHOD] [WORD...|-|@FILE]",
		Aliases: []string{"invoke"},
		Short:   "Call a function, or a method of an agent",
		Long: `Call a function, or a method of an agent. Each word is one argument: JSON if it
parses, else a string.

  lode call censor 'free offer'
  lode call sum 1 2 3                 a list of three
  lode call censor - < offer.json     the body as it is
  lode call thumb @cat.png --raw      bytes, not JSON
  lode call web --path /cart?id=3 -X GET
  lode call cart/alice add book 2     a method of the agent cart/alice`,
		Args: atLeast(1), ValidArgsFunction: c.completeCallable,
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := lode.ParseAddress(args[0])
			if err != nil {
				return err
			}
			if v.Header, err = headerFlags(headers); err != nil {
				return err
			}
			if addr.Key != "" {
				return c.callAgent(cmd, addr, args[1:], v, raw, include)
			}
			v.Function = addr.Name
			if err := c.body(&v, args[1:], raw); err != nil {
				return err
			}
			if ct := v.Header.Get("Content-Type"); ct != "" {
				v.Type = ct
			}
			if v.Path != "" && !strings.HasPrefix(v.Path, "/") {
				v.Path = "/" + v.Path
			}
			return c.invoke(cmd, v, include)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&v.Async, "async", false, "queue the call and print its id")
	f.StringVar(&v.Key, "key", "", "idempotency key: the same call with the same key happens once")
	f.DurationVar(&v.Deadline, "deadline", 0, "give up after this long")
	f.StringVar(&v.Alias, "alias", "", "alias or revision")
	f.StringVarP(&v.Method, "method", "X", "", "HTTP method (default POST)")
	f.StringVar(&v.Path, "path", "", "path and query behind /fn/NAME")
	f.BoolVar(&raw, "raw", false, "the body is bytes, not JSON")
	f.StringArrayVarP(&headers, "header", "H", nil, "a header, as in 'accept: text/html'")
	f.BoolVarP(&include, "include", "i", false, "print status and headers too")
	return cmd
}

// body makes the body of the words behind the name.
func (c *cli) body(v *api.Invocation, words []string, raw bool) error {
	v.Type = "application/json"
	if raw {
		v.Type = "application/octet-stream"
	}
	switch {
	case len(words) == 0:
		if v.Type = ""; v.Method == "" {
			v.Body = http.NoBody
		}
	case len(words) == 1 && words[0] == "-":
		v.Body = c.in
	case len(words) == 1 && strings.HasPrefix(words[0], "@") && len(words[0]) > 1:
		f, err := os.Open(words[0][1:])
		if err != nil {
			return lode.Errorf(lode.NotFound, "%w", err)
		}
		v.Body = f // closed by the transport
	case raw:
		v.Body = strings.NewReader(strings.Join(words, " "))
	case len(words) == 1:
		v.Body = bytes.NewReader(argument(words[0]))
	default:
		list := make([]json.RawMessage, len(words))
		for i, w := range words {
			list[i] = argument(w)
		}
		b, err := json.Marshal(list)
		if err != nil {
			return lode.Errorf(lode.Invalid, "%w", err)
		}
		v.Type, v.Body = argsType, bytes.NewReader(b)
	}
	return nil
}

// argument is a word as JSON: itself if it parses, else a string.
func argument(word string) json.RawMessage {
	if json.Valid([]byte(word)) {
		return json.RawMessage(word)
	}
	b, _ := json.Marshal(word) // a string always marshals
	return b
}

func headerFlags(list []string) (http.Header, error) {
	h := http.Header{}
	for _, s := range list {
		k, v, ok := strings.Cut(s, ":")
		if !ok || strings.TrimSpace(k) == "" {
			return nil, lode.Errorf(lode.Invalid, "-H %q is no header", s).WithHint("want 'name: value'")
		}
		h.Add(strings.TrimSpace(k), strings.TrimSpace(v))
	}
	return h, nil
}

// withinCall bounds the wait for a call: the node answers first; this is for
// when it cannot.
func withinCall(ctx context.Context, deadline time.Duration) (context.Context, context.CancelFunc) {
	if deadline > 0 {
		deadline += 5 * time.Second
	}
	return within(ctx, deadline)
}

func (c *cli) invoke(cmd *cobra.Command, v api.Invocation, include bool) error {
	client, err := c.api()
	if err != nil {
		return err
	}
	ctx, cancel := withinCall(cmd.Context(), v.Deadline)
	defer cancel()
	a, err := client.Invoke(ctx, v)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if v.Async {
		return c.queued(a)
	}
	return c.printAnswer(a, string(v.Function), include)
}

// printAnswer prints what was answered by who was called.
func (c *cli) printAnswer(a *api.Answer, who string, include bool) error {
	if include {
		c.printHead(a)
	}
	last := &lastByte{w: c.out}
	if _, err := io.Copy(last, a.Body); err != nil {
		return lode.AsError(err)
	}
	if last.n > 0 && last.b != '\n' && isTerminal(c.out) {
		fmt.Fprintln(c.out)
	}
	if a.Status >= 400 {
		c.say("%s answered %d", who, a.Status)
		return exitCode(lode.Crashed.ExitCode())
	}
	return nil
}

// refusal is what an agent's own method said is wrong, where it said that in
// words; nil: it did not.
func refusal(a *api.Answer) error {
	if a.Status < 400 || !strings.Contains(a.Header.Get("Content-Type"), "problem+json") {
		return nil
	}
	var e lode.Error
	b, err := io.ReadAll(io.LimitReader(a.Body, 64<<10))
	if err != nil || json.Unmarshal(b, &e) != nil || e.Kind == "" {
		a.Body = io.NopCloser(io.MultiReader(bytes.NewReader(b), a.Body))
		return nil
	}
	return &e
}

// queued prints the id of an asynchronous call.
func (c *cli) queued(a *api.Answer) error {
	io.Copy(io.Discard, a.Body)
	t := &table{}
	t.add(string(a.ID))
	if err := c.show(map[string]any{"id": a.ID, "state": lode.StateQueued}, t); err != nil {
		return err
	}
	c.hint("lode calls show %s --wait 30s tells how it went", a.ID)
	return nil
}

func (c *cli) printHead(a *api.Answer) {
	fmt.Fprintf(c.out, "%d %s\n", a.Status, http.StatusText(a.Status))
	var keys []string
	for k := range a.Header {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		for _, val := range a.Header[k] {
			fmt.Fprintf(c.out, "%s: %s\n", strings.ToLower(k), val)
		}
	}
	fmt.Fprintln(c.out)
}

// lastByte remembers how a body ended.
type lastByte struct {
	w io.Writer
	n int64
	b byte
}

func (l *lastByte) Write(p []byte) (int, error) {
	if len(p) > 0 {
		l.b = p[len(p)-1]
	}
	l.n += int64(len(p))
	return l.w.Write(p)
}
