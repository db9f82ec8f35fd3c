package node

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"lode"
)

// asker is a kind whose read methods call each other.
const asker = `package main

import (
	"context"
	"time"

	"lode/sdk/go"
)

type Asker struct{ N int }

func (a *Asker) Add() int { a.N++; return a.N }
func (a *Asker) Get() int { return a.N }

// Slow waits, as one that fetches something does.
func (a *Asker) Slow() int { time.Sleep(30 * time.Millisecond); return a.N }

// Bad fails.
func (a *Asker) Bad() (int, error) { return 0, &lode.Error{Kind: lode.Conflict, Detail: "never"} }

// Ask calls a method of another agent, n times.
func (a *Asker) Ask(ctx context.Context, to, method string, n int) (sum int, err error) {
	for range n {
		x, err := lode.Call[int](ctx, to, method)
		if err != nil {
			return 0, err
		}
		sum += x
	}
	return sum, nil
}

// Pass has another agent ask a third one.
func (a *Asker) Pass(ctx context.Context, by, to string) (int, error) {
	return lode.Call[int](ctx, by, "ask", to, "get", 1)
}

func main() { lode.Agent("asker", func(string) *Asker { return new(Asker) }, "Get", "Slow", "Bad", "Ask", "Pass") }
`

// TestReadsWithin has turns call read methods of agents of the same node, which
// run in their place: more of them at once than there are slots, some of which
// wait, fail, or ask on.
func TestReadsWithin(t *testing.T) {
	a := built(t, asker)
	n, c := open(t, t.TempDir())
	kind := spec(a)
	kind.Reuse = true
	kind.Agent = &lode.AgentSpec{Class: "asker", Partitions: 4}
	deploy(t, c, a, lode.App{Name: "asker", Agents: map[lode.Name]lode.Function{"asker": kind}})
	call := func(key, method, args string) (int, string) {
		t.Helper()
		resp, err := http.Post(n.URL()+"/agents/asker/"+key+"/"+method, "application/vnd.lode.args+json", strings.NewReader(args))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, strings.TrimSpace(string(b))
	}
	for i := range 5 {
		call(fmt.Sprint("t", i), "add", "[]")
	}
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			for _, x := range []struct {
				method, args, want string
				status             int
			}{
				{"ask", fmt.Sprintf(`["asker/t%d", "get", 10]`, i%5), "10", 200},
				{"ask", fmt.Sprintf(`["asker/t%d", "slow", 2]`, i%5), "2", 200},
				{"ask", fmt.Sprintf(`["asker/t%d", "bad", 1]`, i%5), "never", 409},
				{"pass", fmt.Sprintf(`["asker/p%d", "asker/t%d"]`, i, i%5), "1", 200},
				{"ask", fmt.Sprintf(`["asker/k%d", "get", 1]`, i), "asker/k", 409}, // itself
			} {
				if status, got := call(fmt.Sprint("k", i), x.method, x.args); status != x.status || !strings.Contains(got, x.want) {
					t.Errorf("%s %s: %d %s, want %d %s", x.method, x.args, status, got, x.status, x.want)
				}
			}
		})
	}
	wg.Wait()
}
