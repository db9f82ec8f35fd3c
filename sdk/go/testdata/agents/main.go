// The guest of the tests of agents.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"lode/sdk/go"
)

// Counter is one number.
type Counter struct {
	N    int
	last time.Time
	adds int // of this value in memory
}

func (c *Counter) Add(ctx context.Context, n int) (int, error) {
	c.N += n
	c.adds++
	c.last = time.Now()
	if n < 0 {
		return 0, &lode.Error{Kind: lode.Conflict, Detail: "it only goes up", Hint: "add something"}
	}
	return c.N, nil
}

func (c *Counter) Get() int       { return c.N }
func (c *Counter) Adds() int      { return c.adds }
func (c *Counter) Fail() error    { c.N = -1; return errors.New("no luck") }
func (c *Counter) Panic()         { c.N = -1; panic("boom") }
func (c *Counter) Nobody() error  { return fmt.Errorf("looking: %w", lode.NotFound) }
func (c *Counter) Waste(n int)    { waste = make([]byte, n) }
func (c *Counter) Nothing() error { return nil }

var waste []byte

// Cart has all that a kind can have.
type Cart struct {
	Items map[string]int `json:"items"`
	Note  string         `json:",omitempty"`
	Key   string
	Cache []int `json:"-"`
	Hits  int64
	small int
}

func (c *Cart) Add(ctx context.Context, item string, n int) (map[string]int, error) {
	c.Items[item] += n
	c.small++
	return c.Items, nil
}

func (c *Cart) Total() (n int) {
	for _, x := range c.Items {
		n += x
	}
	return n
}

func (c *Cart) Tags(first string, more ...string) string { return first + strings.Join(more, ",") }
func (c *Cart) Maybe(p *int) bool                        { return p != nil }
func (c *Cart) Bytes(b []byte) []byte                    { return append(b, '!') }
func (c *Cart) Big(n int)                                { c.Note = strings.Repeat("x", n) }
func (c *Cart) SetNote(s string)                         { c.Note = s }

func (c *Cart) Who(ctx context.Context) lode.Identity { return lode.Self(ctx) }

func (c *Cart) Store(ctx context.Context) (string, error) {
	s := lode.State(ctx)
	err := errors.Join(s.Put("a/1", 1), s.Put("a/2", []byte("two")), s.Put("b", map[string]int{"x": 1}), s.Delete("b", "c"), s.Put("c", 3), s.Delete("c"))
	var got []string
	for k, v := range s.List("") {
		got = append(got, k+"="+string(v))
	}
	var n int
	found, err2 := s.Get("a/1", &n)
	_, err3 := s.Get("nix", &n)
	return fmt.Sprint(got, n, found, s.Put(".x", 1) != nil), errors.Join(err, err2, err3, s.Err())
}

func (c *Cart) Many(ctx context.Context, n int) (int, error) {
	s := lode.State(ctx)
	for i := range n {
		if err := s.Put(fmt.Sprintf("k%05d", i), i); err != nil {
			return 0, err
		}
	}
	sum, last := 0, ""
	for k := range s.List("k") {
		if k <= last {
			return 0, fmt.Errorf("%s after %s", k, last)
		}
		last = k
		sum++
	}
	return sum, nil
}

func (c *Cart) Keep(ctx context.Context) error {
	c.Note = "kept"
	if err := lode.State(ctx).Sync(); err != nil {
		return err
	}
	c.Note = "lost"
	return errors.New("later")
}

func (c *Cart) Wipe(ctx context.Context) error { return lode.State(ctx).Clear() }
func (c *Cart) Go(ctx context.Context) error   { return lode.RemoveSelf(ctx) }

func (c *Cart) Remind(ctx context.Context, after int) error {
	return errors.Join(lode.Timer(ctx, "r", time.Duration(after)*time.Millisecond, "ring", "ding", 2), lode.TimerAt(ctx, "later", time.UnixMilli(1<<50), "ring"))
}

func (c *Cart) Ring(ctx context.Context, what string, n int) error {
	c.Note = fmt.Sprint(lode.Self(ctx).Timer, what, n)
	found, err := lode.ClearTimer(ctx, "later")
	if !found {
		err = errors.Join(err, errors.New("later is gone"))
	}
	list, err2 := lode.Timers(ctx)
	return errors.Join(err, err2, lode.Send(ctx, "counter/rung", "add", len(list)+1))
}

func (c *Cart) Order(ctx context.Context, n int) (int, error) {
	if err := lode.Send(ctx, "counter/sent", "add", n, lode.After(time.Second)); err != nil {
		return 0, err
	}
	if n > 100 {
		return 0, lode.TooLarge
	}
	return lode.Call[int](ctx, "counter/called", "add", n, lode.CallKey("k"))
}

func (c *Cart) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.Hits++
	if r.Header.Get("Upgrade") != "" {
		s, err := lode.AcceptSocket(r.Context(), "chat", "room")
		if err == nil {
			err = s.Attach(r.Context(), map[string]int64{"hit": c.Hits})
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
		return
	}
	fmt.Fprintf(w, "%s %s %d", r.Method, r.URL.Path, c.Hits)
}

func (c *Cart) OnMessage(ctx context.Context, s *lode.Socket, m lode.Message) error {
	var a map[string]int
	if ok, err := s.Attachment(ctx, &a); !ok || err != nil {
		return fmt.Errorf("no attachment: %w", err)
	}
	all, err := lode.Sockets(ctx, "chat")
	if err != nil {
		return err
	}
	for _, o := range all {
		if err := o.SendText(ctx, fmt.Sprint(m.Type, " ", string(m.Body), a["hit"], o.Tags)); err != nil {
			return err
		}
	}
	if string(m.Body) == "bye" {
		return s.Close(ctx, 1000, "bye")
	}
	return lode.Emit(ctx, "said", string(m.Body))
}

func (c *Cart) OnClose(ctx context.Context, s *lode.Socket, code int, reason string) {
	c.Note = fmt.Sprint(s.ID, code, reason)
}

func (c *Cart) Migrate(ctx context.Context, from, to int) error {
	c.Note = fmt.Sprint("migrated ", from, to)
	var old int
	if ok, err := lode.State(ctx).Get(".items", &old); ok && err == nil {
		c.Items = map[string]int{"old": old}
	}
	return nil
}

func main() {
	lode.Agent("counter", func(string) *Counter { return &Counter{} }, "Get", "adds")
	lode.Agent("cart", func(key string) *Cart { return &Cart{Items: map[string]int{}, Key: key} }, "Total")
	lode.HandleNamed("gather", func(ctx context.Context) ([]int, error) {
		return lode.Gather[int](ctx, []string{"counter/a", "counter/b"}, "add", 5)
	})
	lode.HandleNamed("train", train)
	lode.HandleNamed("serve", serve)
	lode.HandleNamed("outside", func(ctx context.Context) lode.Kind { return lode.KindOf(lode.State(ctx).Put("a", 1)) })
}

func train(ctx context.Context, rank int) (string, error) {
	g, err := lode.JoinGroup(ctx, "g", rank, 2)
	if err != nil {
		return "", err
	}
	v, w := []float32{1, float32(rank)}, []float64{float64(rank)}
	if err := errors.Join(g.AllReduceF32(lode.Sum, v), g.AllReduceF64(lode.Max, w)); err != nil {
		return "", err
	}
	parts, err := g.Exchange([]byte{byte('a' + rank)})
	return fmt.Sprintf("%v %v %s", v, w, slices.Concat(parts...)), errors.Join(err, g.Barrier(), g.Leave())
}

func serve(ctx context.Context) (string, error) {
	got := lode.Run(ctx)
	for {
		m, err := lode.Receive(ctx)
		if err != nil {
			return got, err
		}
		switch m.Method {
		case "stop":
			return got, nil
		case "fail":
			err = m.Reply(ctx, lode.NotFound)
		default:
			var a, b int
			if err = m.Args(&a, &b); err == nil {
				got += fmt.Sprint(m.Waits())
				err = m.Reply(ctx, a+b)
			}
		}
		if err != nil {
			return got, err
		}
	}
}
