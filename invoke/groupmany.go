package invoke

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"lode"
	"lode/engine"
	"lode/link"
)

// Homes is an optional ability of Agents: to say where an agent is, so that
// those of one node are called with one message.
type Homes interface {
	// Home is the node that has an agent, as far as this one knows. It answers
	// from memory.
	Home(ns lode.Namespace, kind lode.Name, key string) (lode.NodeID, bool)
}

// argsType is the content type of a list of arguments.
const argsType = "application/vnd.lode.args+json"

// maxMembers is how many members a gather may have.
const maxMembers = 16384

// manyBody is the body of gather and broadcast.
type manyBody struct {
	Members []string        `json:"members"`
	Method  string          `json:"method"`
	Args    json.RawMessage `json:"args"`
}

// wireMany has a node call members of a group; the arguments are the rest of
// its packet.
type wireMany struct {
	Namespace lode.Namespace `json:"ns"`
	Members   []string       `json:"members"`
	At        []int          `json:"at"` // their places in the whole list
	Method    string         `json:"method"`
	Broadcast bool           `json:"broadcast,omitempty"`
	Left      time.Duration  `json:"left"` // until nobody waits any more, ns
	deadline  time.Time
	// AgentsOnly: running invocations have the message, or may have it.
	AgentsOnly bool     `json:"-"`
	Caller     string   `json:"caller"`
	Chain      []string `json:"chain,omitempty"`
	Trace      string   `json:"trace,omitempty"`
	Depth      int      `json:"depth"`
	ID         string   `json:"id"` // the calls' ids follow from it
}

// gathered is what a member answered.
type gathered struct {
	Member string          `json:"member"`
	Status int             `json:"status"` // 0: it did not answer
	Value  json.RawMessage `json:"value"`
}

type manyAnswer struct {
	Gathered []gathered `json:"gathered"` // as the members of the question
}

// many is the operations gather and broadcast, the n-th of the attempt.
func (a *attempt) many(ctx context.Context, m *lode.Message, n int) (lode.Message, error) {
	var body manyBody
	if err := json.Unmarshal(m.Body, &body); err != nil {
		return lode.Message{}, lode.Errorf(lode.Invalid, "the body of %s cannot be read: %w", m.Get(":verb"), err)
	}
	if len(body.Members) > maxMembers || body.Method == "" {
		return lode.Message{}, lode.Errorf(lode.Invalid, "%s needs a method, and takes at most %d members, not %d", m.Get(":verb"), maxMembers, len(body.Members))
	}
	timeout, err := timeoutOf(m, groupWait)
	if err != nil {
		return lode.Message{}, err
	}
	if len(body.Args) == 0 || string(body.Args) == "null" {
		body.Args = json.RawMessage("[]")
	}
	w := a.toMany(&body, n, m.Get(":verb") == "broadcast")
	w.deadline = earlier(a.inv.Deadline, time.Now().Add(timeout))
	w.Left = max(time.Until(w.deadline), 1)
	ctx, cancel := context.WithDeadline(ctx, w.deadline.Add(manyGrace))
	defer cancel()
	all, err := a.s.callMany(ctx, w, body.Args)
	if err != nil {
		return lode.Message{}, err
	}
	return conclusion(all, w.Broadcast)
}

// manyGrace is how much longer a node is waited for than its members, to hear
// which of them answered.
const manyGrace = time.Second

// toMany is the question to all members.
func (a *attempt) toMany(body *manyBody, n int, broadcast bool) *wireMany {
	w := &wireMany{Namespace: a.rev.Namespace, Members: body.Members, Method: body.Method, Broadcast: broadcast, Caller: a.caller(), Trace: a.trace.Traceparent(), Depth: a.depth + 1}
	w.ID = string(lode.NewInvocationID(time.Now()))
	if t := a.turn; t != nil {
		w.Chain = t.Chain
		for _, p := range t.Head {
			if p.Key == ":turn-id" { // a turn that is repeated makes the same calls
				w.ID = lode.TurnIDOf("group "+p.Value, n)
			}
		}
	}
	return w
}

// conclusion is the result of a gather.
func conclusion(all []gathered, broadcast bool) (lode.Message, error) {
	var missing []string
	for i := range all {
		if all[i].Status == 0 {
			missing = append(missing, all[i].Member)
		}
	}
	if len(missing) > 0 {
		first := missing[:min(len(missing), 10)]
		e := lode.Errorf(lode.Unavailable, "%d of %d members did not answer in time: %s", len(missing), len(all), strings.Join(first, ", "))
		return missingMessage(missing), e
	}
	if broadcast {
		return lode.Message{}, nil
	}
	b, err := json.Marshal(all)
	if err != nil {
		return lode.Message{}, lode.Errorf(lode.Internal, "write the answers: %w", err)
	}
	if len(b) > engine.MaxMessage-maxAnswerHead {
		return lode.Message{}, lode.Errorf(lode.TooLarge, "the answers of all members have %d bytes, too many for a message", len(b))
	}
	return lode.Message{Body: b}, nil
}

// callMany calls all members, those of one node with one message.
func (s *Service) callMany(ctx context.Context, w *wireMany, args []byte) ([]gathered, error) {
	all := make([]gathered, len(w.Members))
	by := map[lode.NodeID]*wireMany{}
	for i, m := range w.Members {
		all[i].Member = m
		node, err := s.homeOf(w.Namespace, m)
		if err != nil {
			return nil, err
		}
		part := by[node]
		if part == nil {
			own := *w
			part = &own
			part.Members, by[node] = nil, part
		}
		part.Members, part.At = append(part.Members, m), append(part.At, i)
	}
	var wg sync.WaitGroup
	for node, part := range by {
		wg.Go(func() {
			for i, g := range s.callPart(ctx, node, part, args) {
				all[part.At[i]] = g
			}
		})
	}
	wg.Wait()
	return all, nil
}

// homeOf is the node that a member is on; this one where nobody knows.
func (s *Service) homeOf(ns lode.Namespace, member string) (lode.NodeID, error) {
	here := lode.NodeID(s.cfg.Node)
	to, err := lode.ParseAddress(member)
	if err != nil {
		return "", err
	}
	if run, ok, err := parseRun(to); ok || err != nil {
		return run.node, err
	}
	if to.Key == "" {
		return "", lode.Errorf(lode.Invalid, "%s is no address of an agent or a running invocation", to).WithHint("call functions one by one")
	}
	if h, ok := s.cfg.Agents.(Homes); ok && s.spread != nil {
		if node, ok := h.Home(ns, to.Name, to.Key); ok {
			return node, nil
		}
	}
	return here, nil
}

// callPart calls the members of one node. If that cannot be reached, its agents
// are somewhere else, or will be: they are called from here, by the same ids.
// Running invocations get a message once.
func (s *Service) callPart(ctx context.Context, node lode.NodeID, w *wireMany, args []byte) []gathered {
	if node == lode.NodeID(s.cfg.Node) {
		return s.callHere(ctx, w, args)
	}
	var ans manyAnswer
	_, err := s.ask(ctx, node, talkMany, w, args, &ans)
	if err == nil && len(ans.Gathered) == len(w.Members) {
		return ans.Gathered
	}
	w.AgentsOnly = !errors.Is(err, link.ErrNotSent) && !errors.Is(err, link.ErrRefused)
	return s.callHere(ctx, w, args)
}

func (s *Service) serveMany(ctx context.Context, r io.Reader) (any, []byte, error) {
	var w wireMany
	args, err := unpack(r, &w)
	if err != nil {
		return nil, nil, err
	}
	w.deadline = time.Now().Add(w.Left)
	if len(w.Members) > maxMembers || len(w.At) != len(w.Members) {
		return nil, nil, lode.Errorf(lode.Invalid, "another node asks for %d members at %d places", len(w.Members), len(w.At))
	}
	return manyAnswer{s.callHere(ctx, &w, args)}, nil, nil
}

// callHere calls each of some members from this node, until the deadline.
func (s *Service) callHere(ctx context.Context, w *wireMany, args []byte) []gathered {
	ctx, cancel := context.WithDeadline(ctx, w.deadline)
	defer cancel()
	out := make([]gathered, len(w.Members))
	var wg sync.WaitGroup
	for i, m := range w.Members {
		wg.Go(func() { out[i] = s.callMember(ctx, w, m, w.At[i], args) })
	}
	wg.Wait()
	return out
}

// callMember calls one member.
func (s *Service) callMember(ctx context.Context, w *wireMany, member string, at int, args []byte) gathered {
	ans, err := s.memberAnswer(ctx, w, member, at, args)
	switch lode.KindOf(err) {
	case "":
	case lode.Unavailable, lode.Deadline, lode.Cancelled:
		return gathered{Member: member}
	default:
		b, jerr := lode.AsError(err).MarshalJSON()
		if jerr != nil {
			b = nil
		}
		return gathered{member, lode.KindOf(err).Status(), b}
	}
	return gathered{member, ans.Status, valueOf(headOf(ans.Head, "content-type"), ans.Body)}
}

func (s *Service) memberAnswer(ctx context.Context, w *wireMany, member string, at int, args []byte) (*lode.AgentReply, error) {
	to, err := lode.ParseAddress(member)
	if err != nil {
		return nil, err
	}
	head := []lode.Pair{{Key: "content-type", Value: argsType}}
	if run, ok, err := parseRun(to); err != nil {
		return nil, err
	} else if ok && w.AgentsOnly {
		return nil, lode.Errorf(lode.Unavailable, "the node of %s did not answer", member)
	} else if ok {
		m, err := s.callRunning(ctx, run, &wireMail{Namespace: w.Namespace, To: member, Verb: w.Method, Caller: w.Caller, Head: head, Wait: !w.Broadcast}, args)
		if err != nil {
			return nil, err
		}
		status, err := number(&m, ":status", 200, 599)
		return &lode.AgentReply{Status: int(status), Head: m.Head, Body: m.Body}, err
	}
	if s.cfg.Agents == nil {
		return nil, lode.Errorf(lode.NotFound, "this node has no agents")
	}
	deadline, _ := ctx.Deadline()
	return s.cfg.Agents.Call(ctx, &lode.AgentCall{Namespace: w.Namespace, Kind: to.Name, Key: to.Key, Method: w.Method, ID: lode.TurnIDOf(w.ID, at), Head: head, Body: args,
		Deadline: deadline, Caller: w.Caller, Chain: w.Chain, Trace: w.Trace, Depth: w.Depth})
}

func headOf(head []lode.Pair, key string) string {
	m := lode.Message{Head: head}
	return m.Get(key)
}

// valueOf is an answer as JSON: bytes that are not are a text in base64.
func valueOf(contentType string, body []byte) json.RawMessage {
	switch {
	case len(body) == 0:
		return json.RawMessage("null")
	case !strings.HasPrefix(contentType, "application/octet-stream") && json.Valid(body):
		return body
	}
	b, err := json.Marshal(body)
	if err != nil {
		return json.RawMessage("null")
	}
	return b
}
