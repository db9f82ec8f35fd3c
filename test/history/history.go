// Package history uses agents from many clients at once, keeps what each did and
// heard, and checks that one order of all operations explains it (S2, S3, S5),
// and that messages take effect once (S6).
package history

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"lode/agent/agenttest"
)

// Lab is what a cluster must have deployed: a folder, seen from the folder of
// another package below test.
const Lab = "../history/lab"

// Door is a way to the agents: a node.
type Door interface {
	// Call calls a method of agent thing/key with one argument, in JSON, for
	// at most so long; id is an idempotency key, "" for none.
	Call(key, method, arg, id string, most time.Duration) Answer
}

// Answer is what a door said.
type Answer struct {
	Status int    // of HTTP; 0: nothing
	Body   string // without white space around it
	Kind   string // of a Lode error
}

// OK reports whether the answer says that the call took effect.
func (a Answer) OK() bool { return a.Status >= 200 && a.Status < 300 }

// harmless reports whether the answer says that the call took no effect.
func (a Answer) harmless() bool {
	return a.Kind == "overloaded" || a.Kind == "full" || a.Kind == "unavailable" && a.Status == 503
}

// History is what clients did and heard.
type History struct {
	began time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
	lost  int
	slow  time.Duration
	no    map[string]int // answers that were none, by what they said
}

// New begins a history.
func New() *History { return &History{began: time.Now(), no: map[string]int{}} }

// do is one operation of a client.
func (h *History) do(client int, d Door, s agenttest.Step, id string) {
	arg := s.Arg
	if s.Method == "put" || s.Method == "note" {
		b, _ := json.Marshal(arg) // a string can always be written
		arg = string(b)
	}
	call := time.Since(h.began)
	a := d.Call(s.Agent, s.Method, arg, id, 10*time.Second)
	ret := time.Since(h.began)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slow = max(h.slow, ret-call)
	op := porcupine.Operation{ClientId: client, Input: s, Call: int64(call), Return: int64(ret)}
	if !a.OK() {
		h.no[fmt.Sprintf("%d %.120s", a.Status, a.Body)]++
	}
	switch {
	case a.OK():
		out := agenttest.Said{Value: a.Body}
		if s.Method == "peek" {
			json.Unmarshal([]byte(a.Body), &out.Value)
		}
		op.Output = out
	case s.Method == "get" || s.Method == "peek" || a.harmless():
		return
	default:
		h.lost++
		op.Output, op.Return = agenttest.Said{Unknown: true}, 1<<62
	}
	h.ops = append(h.ops, op)
}

const accounts, deposit = 6, 100

func account(seed, i int) string { return fmt.Sprintf("s%d-account%d", seed, i%accounts) }

// Use has six clients use the agents of a seed until stop, each with a pause of
// up to pause between two operations. The clients are gone when the result is
// done.
func (h *History) Use(t testing.TB, stop context.Context, doors []Door, seed int, pause time.Duration) *sync.WaitGroup {
	t.Helper()
	for i := range accounts {
		if a := doors[0].Call(account(seed, i), "open", strconv.Itoa(deposit), "", patience); !a.OK() {
			t.Fatalf("open an account: %+v", a)
		}
	}
	var all sync.WaitGroup
	for n := range 6 {
		r := rand.New(rand.NewPCG(uint64(seed), uint64(n)))
		all.Go(func() {
			for i := 0; stop.Err() == nil; i++ {
				d, word, id := doors[r.IntN(len(doors))], fmt.Sprintf("%d.%d", n, i), ""
				if r.IntN(3) == 0 {
					id = "key " + word
				}
				key := fmt.Sprintf("s%d-", seed)
				switch r.IntN(7) {
				case 0:
					h.do(n, d, agenttest.Step{Agent: key + "count", Method: "add", Arg: "1"}, id)
				case 1:
					h.do(n, d, agenttest.Step{Agent: key + "count", Method: "get"}, "")
				case 2:
					h.do(n, d, agenttest.Step{Agent: key + "reg", Method: "put", Arg: word}, id)
				case 3:
					h.do(n, d, agenttest.Step{Agent: key + "reg", Method: "peek"}, "")
				case 4:
					h.do(n, d, agenttest.Step{Agent: key + "set", Method: "note", Arg: word}, id)
				case 5:
					h.do(n, d, agenttest.Step{Agent: key + "set", Method: "peek"}, "")
				case 6:
					from := r.IntN(accounts)
					d.Call(account(seed, from), "pay", fmt.Sprintf(`{"to": %q, "amount": %d}`, account(seed, from+1+r.IntN(accounts-1)), 1+r.IntN(30)), "", 10*time.Second)
				}
				time.Sleep(time.Duration(r.Int64N(int64(pause))))
			}
		})
	}
	return &all
}

// patience bounds every wait for something that must come.
const patience = 90 * time.Second

// Check reads everything of a seed once more, at every door, and has the
// history explained by one order of its operations, and the money be all
// there: what is on its way arrives.
func (h *History) Check(t testing.TB, doors []Door, seed int) {
	t.Helper()
	for i, d := range doors {
		for what, method := range map[string]string{"count": "get", "reg": "peek", "set": "peek"} {
			h.do(100+i, d, agenttest.Step{Agent: fmt.Sprintf("s%d-%s", seed, what), Method: method}, "")
		}
	}
	t.Logf("agents: %d operations, %d of them lost, the slowest took %s", len(h.ops), h.lost, h.slow.Round(time.Millisecond))
	for what, n := range h.no {
		t.Logf("  %d times %s", n, what)
	}
	agenttest.Ordered(t, h.ops)
	solvent(t, doors, seed)
}

// solvent checks that no money was made or lost.
func solvent(t testing.TB, doors []Door, seed int) {
	t.Helper()
	total := 0
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		total = 0
		for i := range accounts {
			a := doors[i%len(doors)].Call(account(seed, i), "add", "0", "", patience)
			n, err := strconv.Atoi(a.Body)
			if !a.OK() || err != nil || n < 0 {
				t.Fatalf("%s has %+v", account(seed, i), a)
			}
			total += n
		}
		if total >= accounts*deposit {
			break
		}
	}
	if total != accounts*deposit {
		t.Errorf("there are %d, of %d", total, accounts*deposit)
	}
}
