package abitest

import (
	"context"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"lode/sdk/abi/solo"
	"lode/sdk/abi/vectors"
)

// agentScript is one entry of agents.json.
type agentScript struct {
	Name  string
	Turns []scriptTurn
}

type scriptTurn struct {
	Agent, Kind, Verb, Body string // Kind of the turn; "": call
	List                    bool   // Body is a list of arguments
	Fire                    bool   // instead: whatever timer the agent has is due
	None                    bool   // there is none
	Answer                  string
	Status, Fail, ErrorKind string
	Failed                  bool // with whatever message
	State                   map[string]string
	Sent, Called            *scriptMessage
}

type scriptMessage struct{ To, Verb, Argument string }

// is reports whether d is that message; its argument may be alone or the only
// one of a list.
func (m *scriptMessage) is(d solo.Delivery) bool {
	args := strings.TrimSpace(string(d.Args))
	return d.To == m.To && d.Verb == m.Verb && (args == m.Argument || args == "["+m.Argument+"]")
}

// AgentConformance runs the turns of agents.json, warm and cold, against a
// module that has a kind named vector with the methods that the file's abouts
// describe.
func AgentConformance(t *testing.T, wasm []byte) {
	ctx := context.Background()
	g, err := Load(ctx, wasm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close(ctx) })
	var list []agentScript
	if err := json.Unmarshal(vectors.Agents, &list); err != nil || len(list) == 0 {
		t.Fatal(err)
	}
	for _, cold := range []bool{false, true} {
		for _, s := range list {
			name := s.Name
			if cold {
				name += ", cold"
			}
			t.Run(name, func(t *testing.T) { s.run(t, &Agents{Guest: g, World: &solo.World{}, Cold: cold, Later: cold}) })
		}
	}
}

func (s *agentScript) run(t *testing.T, a *Agents) {
	var called []solo.Delivery
	a.World.Call = func(_ context.Context, d solo.Delivery) solo.Message {
		called = append(called, d)
		return solo.Message{Head: map[string]string{":status": "200", "content-type": "application/json"}, Body: []byte("7")}
	}
	for i, st := range s.Turns {
		called = nil
		r, sent, err := st.do(a)
		if err != nil {
			t.Fatalf("turn %d: %v", i+1, err)
		}
		if st.None {
			if r != nil {
				t.Errorf("turn %d: a timer is there", i+1)
			}
			continue
		}
		if r == nil {
			t.Fatalf("turn %d: there is no timer", i+1)
		}
		st.check(t, i+1, r)
		if got := texts(a.World.State(st.Agent)); st.State != nil && !maps.Equal(got, st.State) {
			t.Errorf("turn %d: the state is %v, want %v", i+1, got, st.State)
		}
		if (st.Sent != nil) != (len(sent) == 1) || st.Sent != nil && !st.Sent.is(sent[0]) {
			t.Errorf("turn %d: sent %+v, want %+v", i+1, sent, st.Sent)
		}
		if (st.Called != nil) != (len(called) == 1) || st.Called != nil && !st.Called.is(called[0]) {
			t.Errorf("turn %d: called %+v, want %+v", i+1, called, st.Called)
		}
	}
}

// do runs the turn; no result where no timer is due.
func (st *scriptTurn) do(a *Agents) (*Result, []solo.Delivery, error) {
	if st.Fire {
		return a.Timer(context.Background(), time.Now().AddDate(1, 0, 0))
	}
	turn := Turn{Agent: st.Agent, Kind: st.Kind, Verb: st.Verb, Body: st.Body}
	if st.List {
		turn.Type = "application/vnd.lode.args+json"
	}
	return a.Do(context.Background(), turn)
}

// check compares the outcome of turn n.
func (st *scriptTurn) check(t *testing.T, n int, r *Result) {
	if st.Fail == "" && !st.Failed {
		if r.Code != 0 || strings.TrimSpace(string(r.Body)) != st.Answer || st.Answer == "" && r.Status != "204" {
			t.Errorf("turn %d: code %d, %+v, status %q, answer %q; want %q", n, r.Code, r.Fail, r.Status, r.Body, st.Answer)
		}
		return
	}
	if st.Failed {
		if r.Code == 0 && !refused(st.Kind, r.Status) {
			t.Errorf("turn %d went well: %q", n, r.Body)
		}
		return
	}
	if st.Status == "" {
		if r.Code == 0 || r.Fail == nil || r.Fail.Message != st.Fail {
			t.Errorf("turn %d: code %d, %+v; want %q", n, r.Code, r.Fail, st.Fail)
		}
		return
	}
	var p struct{ Kind, Detail string }
	if err := json.Unmarshal(r.Body, &p); err != nil || r.Code != 0 || p.Kind != st.ErrorKind || p.Detail != st.Fail || r.Status != st.Status || r.Head["content-type"] != "application/problem+json" {
		t.Errorf("turn %d: %v, status %q, answer %q; want the kind %s", n, err, r.Status, r.Body, st.ErrorKind)
	}
}

func texts(m map[string][]byte) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		out[k] = string(v)
	}
	return out
}
