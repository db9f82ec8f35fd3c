package gateway

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"lode"
)

// The types of a body of arguments.
const (
	typeJSON = "application/json"               // one argument
	typeArgs = "application/vnd.lode.args+json" // a JSON list of arguments
	typeForm = "application/x-www-form-urlencoded"
)

// callAgent is {method} below an agent: POST, and GET if it only reads.
func (g *Gateway) callAgent(w http.ResponseWriter, r *http.Request, v *visit, method string) {
	turn := lode.TurnCall
	if v.reads(method) {
		turn = lode.TurnRead
	}
	switch r.Method {
	case http.MethodPost:
	case http.MethodGet, http.MethodHead:
		if len(v.methods) > 0 && turn != lode.TurnRead {
			w.Header()["Allow"] = []string{"POST"}
			g.turnAway(w, r, v, lode.Errorf(lode.BadMethod, "method %s of kind %s may change its agent: it does not take %s", method, v.kind, r.Method).
				WithHint("it takes POST; those that take GET are marked as read in the code, or under methods in lode.yaml"))
			return
		}
		turn = lode.TurnRead // the platform denies it all writing
	default:
		allow := "POST"
		if turn == lode.TurnRead {
			allow = "GET, HEAD, POST"
		}
		w.Header()["Allow"] = []string{allow}
		g.turnAway(w, r, v, badMethod(r, allow))
		return
	}
	x := g.newExchange(w, r)
	x.ans.allow = v.allow
	err := x.terms(r)
	if err == nil {
		err = x.arguments(w, r, v)
	}
	if err != nil {
		x.ans.fail(err)
		x.release()
		return
	}
	x.address(v, turn)
	x.call.Method = method
	if p := r.Header["Prefer"]; len(p) > 0 && turn == lode.TurnCall && listed(p, "respond-async") {
		g.postAgent(x, w, r)
		return
	}
	g.turn(x, r)
}

// address makes x.call out of what x.req holds, for a turn of an agent.
func (x *exchange) address(v *visit, turn lode.TurnKind) {
	q := &x.req
	x.call = lode.AgentCall{Namespace: v.c.ns, Kind: v.kind, Key: v.key, Turn: turn, ID: string(q.ID), Head: x.pairs, Body: q.Body, Deadline: q.Deadline, Trace: q.Trace}
	if q.IdempotencyKey != "" {
		x.call.ID, x.call.Given = q.IdempotencyKey, true
	}
}

// turn makes the turn of x.call, and releases x unless the agent may still look
// at it.
func (g *Gateway) turn(x *exchange, r *http.Request) {
	rep, err := g.cfg.Agents.Call(r.Context(), &x.call)
	if err != nil {
		x.ans.fail(err)
		return
	}
	x.ans.reply(rep)
	x.release()
}

// postAgent is Prefer: respond-async (RFC 7240). x is left to the collector:
// its call may wait in memory for its turn.
func (g *Gateway) postAgent(x *exchange, w http.ResponseWriter, r *http.Request) {
	id, err := g.cfg.Agents.Post(r.Context(), &x.call)
	if err != nil {
		x.ans.fail(err)
		return
	}
	h := w.Header()
	h.Set("Preference-Applied", "respond-async")
	h.Set("Lode-Invocation", id)
	if x.ans.allow != "" {
		setCORS(h, x.ans.allow)
	}
	g.accepted(w, id)
}

// arguments reads the arguments of a method, from the body or the query.
func (x *exchange) arguments(w http.ResponseWriter, r *http.Request, v *visit) error {
	kind := typeArgs
	if r.Method == http.MethodPost {
		if err := x.readAll(w, r, bodyLimit(v.fn.Limits.Body)); err != nil {
			return err
		}
		kind = argumentType(r)
	} else if r.URL.RawQuery != "" {
		body, err := queryArguments(r.URL.RawQuery)
		if err != nil {
			return err
		}
		x.req.Body = body
	}
	if len(x.req.Body) > 0 {
		x.pairs = append(x.pairs, lode.Pair{Key: "content-type", Value: kind})
	}
	return nil
}

// argumentType is what a body of arguments is: JSON where the client did not
// say otherwise. curl says that it is a form when it was told nothing.
func argumentType(r *http.Request) string {
	v := r.Header["Content-Type"]
	if len(v) == 0 || v[0] == "" || v[0] == typeJSON {
		return typeJSON
	}
	media, _, _ := strings.Cut(v[0], ";")
	media = strings.ToLower(strings.TrimSpace(media))
	switch media {
	case typeJSON, typeForm:
		return typeJSON
	case typeArgs:
		return typeArgs
	}
	return v[0]
}

// queryArguments makes a list of arguments of a query: args is the list itself,
// or each arg is one of them, in JSON if it can be read as JSON, else a string.
func queryArguments(query string) ([]byte, error) {
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "the query cannot be read: %w", err)
	}
	list, each := q["args"], q["arg"]
	switch {
	case len(list) == 0 && len(each) == 0:
		return nil, nil
	case len(list) == 1 && len(each) == 0:
		b := []byte(list[0])
		var items []json.RawMessage
		if err := json.Unmarshal(b, &items); err != nil || items == nil {
			return nil, lode.Errorf(lode.Invalid, "args is not a JSON list").WithHint(`args=["a",2], or arg=a&arg=2`)
		}
		return b, nil
	case len(list) > 0:
		return nil, lode.Errorf(lode.Invalid, "the query has args more than once, or args and arg").WithHint(`args=["a",2], or arg=a&arg=2`)
	}
	b := []byte{'['}
	for i, s := range each {
		if i > 0 {
			b = append(b, ',')
		}
		if json.Valid([]byte(s)) {
			b = append(b, s...)
			continue
		}
		word, _ := json.Marshal(s) // strings always marshal
		b = append(b, word...)
	}
	return append(b, ']'), nil
}

// fetchAgent hands an HTTP request to the agent's fetch handler.
func (g *Gateway) fetchAgent(w http.ResponseWriter, r *http.Request, v *visit) {
	if wantsSocket(r) {
		g.upgrade(w, r, v)
		return
	}
	x := g.newExchange(w, r)
	x.ans.allow = v.allow
	err := x.terms(r)
	if err == nil {
		x.pairs, err = appendHead(x.pairs, r, v.c.checked)
	}
	if err == nil {
		err = x.readAll(w, r, bodyLimit(v.fn.Limits.Body))
	}
	if err != nil {
		x.ans.fail(err)
		x.release()
		return
	}
	x.address(v, lode.TurnFetch)
	x.call.Method, x.call.Path = r.Method, v.path(r)
	g.turn(x, r)
}

// path is path and query behind the key, for the fetch handler.
func (v *visit) path(r *http.Request) string {
	p := v.rest
	if p == "" {
		p = "/"
	}
	if r.URL.RawQuery != "" {
		p += "?" + r.URL.RawQuery
	}
	return p
}

// reply writes what an agent answered.
func (a *answer) reply(rep *lode.AgentReply) {
	status := rep.Status
	if status == 0 {
		status = http.StatusOK
	}
	if rep.ID != "" {
		a.id = lode.InvocationID(rep.ID)
	}
	if status < 200 || status > 599 {
		a.fail(badStatus("the agent", status))
		return
	}
	a.node = string(rep.Node)
	h := a.w.Header()
	a.fields(h, rep.Head)
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // net/http would guess one from the bytes
	}
	a.common(h)
	if rep.Repeated {
		a.set(h, "Lode-Repeated", "1")
	}
	body := bodyAllowed(a.r.Method, status)
	if body {
		delete(h, "Content-Length")
		a.set(h, "Content-Length", strconv.Itoa(len(rep.Body)))
	}
	a.sent = true
	a.w.WriteHeader(status)
	if !body || len(rep.Body) == 0 {
		return
	}
	if len(rep.Body) > hold { // less is taken by buffers
		a.deadline()
		defer func() { _ = http.NewResponseController(a.w).SetWriteDeadline(time.Time{}) }()
	}
	_, _ = a.w.Write(rep.Body) // nobody is left to tell
}
