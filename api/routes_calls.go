package api

import (
	"io"
	"net/http"
	"strconv"

	"lode"
)

func callRoutes() []route {
	return []route{
		{id: "calls.list", method: "GET", path: "/v1/calls", role: RoleRead, summary: "List asynchronous calls, newest first",
			query: append([]param{{"function", "string", "of this function"}, {"state", "string", "queued, running, done, failed or cancelled"}, {"dead", "boolean", "dead letters only"}}, paging...),
			reply: List[Call]{}, serve: listCalls},
		{id: "calls.get", method: "GET", path: "/v1/calls/{id}", role: RoleRead, summary: "One call", query: waiting, reply: Call{}, serve: getCall},
		{id: "calls.result", method: "GET", path: "/v1/calls/{id}/result", role: RoleCall, summary: "The answer of a call that is done; the function's status is in Lode-Status", rawType: "application/octet-stream", serve: callResult},
		{id: "calls.cancel", method: "POST", path: "/v1/calls/{id}/cancel", role: RoleCall, write: true, summary: "Cancel a call", reply: Call{}, serve: cancelCall},
		{id: "calls.replay", method: "POST", path: "/v1/calls/{id}/replay", role: RoleCall, write: true, summary: "Queue a failed call again", reply: Call{}, serve: replayCall},
		{id: "queues.list", method: "GET", path: "/v1/queues", role: RoleRead, summary: "List queues and their depth", query: paging, reply: List[Queue]{}, serve: listQueues},
		{id: "queues.get", method: "GET", path: "/v1/queues/{name}", role: RoleRead, summary: "One queue", reply: Queue{}, serve: getQueue},
	}
}

func listCalls(c *call) error {
	if c.b.Calls == nil {
		return missing("calls")
	}
	q := c.r.URL.Query()
	f := CallFilter{Function: lode.Name(q.Get("function")), State: lode.State(q.Get("state"))}
	switch f.State {
	case "", lode.StateQueued, lode.StateRunning, lode.StateDone, lode.StateFailed, lode.StateCancelled:
	default:
		return lode.Errorf(lode.Invalid, "there is no state %q", f.State).WithHint("states: queued, running, done, failed, cancelled")
	}
	if f.Function != "" {
		if _, err := lode.ParseName(string(f.Function)); err != nil {
			return err
		}
	}
	var err error
	if f.Dead, err = c.bool("dead"); err != nil {
		return err
	}
	return listing(c, func(p Page) (List[Call], error) { return c.b.Calls.ListCalls(c.r.Context(), c.ns, f, p) })
}

// withCall runs do with the noun and the id in the path.
func (c *call) withCall(do func(Calls, lode.InvocationID) (Call, error)) error {
	if c.b.Calls == nil {
		return missing("calls")
	}
	v, err := do(c.b.Calls, lode.InvocationID(c.r.PathValue("id")))
	if err != nil {
		return err
	}
	return c.json(v, "")
}

func getCall(c *call) error {
	return c.withCall(func(b Calls, id lode.InvocationID) (Call, error) {
		d, err := c.wait()
		if err != nil {
			return Call{}, err
		}
		return b.GetCall(c.r.Context(), c.ns, id, d)
	})
}

func cancelCall(c *call) error {
	return c.withCall(func(b Calls, id lode.InvocationID) (Call, error) { return b.CancelCall(c.r.Context(), c.ns, id) })
}

func replayCall(c *call) error {
	return c.withCall(func(b Calls, id lode.InvocationID) (Call, error) { return b.ReplayCall(c.r.Context(), c.ns, id) })
}

func callResult(c *call) error {
	if c.b.Calls == nil {
		return missing("calls")
	}
	v, err := c.b.Calls.CallResult(c.r.Context(), c.ns, lode.InvocationID(c.r.PathValue("id")))
	if err != nil {
		return err
	}
	return c.content(v)
}

// content sends v and closes it.
func (c *call) content(v Content) error {
	defer v.Body.Close()
	status, ctype := v.Status, v.Type
	if status == 0 {
		status = http.StatusOK
	}
	if ctype == "" {
		ctype = "application/octet-stream"
	}
	c.w.Header().Set("Lode-Status", strconv.Itoa(status))
	if v.Size >= 0 {
		c.w.Header().Set("Content-Length", strconv.FormatInt(v.Size, 10))
	} else {
		c.trailers()
	}
	c.begin(ctype, http.StatusOK)
	_, err := io.Copy(c.w, v.Body)
	return c.gone(err)
}

func listQueues(c *call) error {
	if c.b.Queues == nil {
		return missing("queues")
	}
	return listing(c, func(p Page) (List[Queue], error) { return c.b.Queues.ListQueues(c.r.Context(), c.ns, p) })
}

func getQueue(c *call) error {
	if c.b.Queues == nil {
		return missing("queues")
	}
	return named(c, "name", func(n lode.Name) error {
		v, err := c.b.Queues.GetQueue(c.r.Context(), c.ns, n)
		if err != nil {
			return err
		}
		return c.json(v, "")
	})
}
