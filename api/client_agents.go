package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"lode"
)

// ListAgents lists agents, by address.
func (c *Client) ListAgents(ctx context.Context, f AgentFilter, p Page) (l List[Agent], err error) {
	q := paged(p, nil)
	if f.Kind != "" {
		q.Set("kind", string(f.Kind))
	}
	if f.Partition > 0 {
		q.Set("partition", strconv.Itoa(f.Partition-1))
	}
	err = c.do(ctx, http.MethodGet, path("agents"), q, nil, &l, "")
	return l, err
}

// GetAgent shows an agent.
func (c *Client) GetAgent(ctx context.Context, kind lode.Name, key string) (v AgentDetail, err error) {
	err = c.do(ctx, http.MethodGet, path("agents/%s/%s", string(kind), key), nil, nil, &v, "")
	return v, err
}

// RemoveAgent removes an agent with its state.
func (c *Client) RemoveAgent(ctx context.Context, kind lode.Name, key string) error {
	return c.do(ctx, http.MethodDelete, path("agents/%s/%s", string(kind), key), nil, nil, nil, "")
}

// ReplayAgent makes a dead message of an agent a message again.
func (c *Client) ReplayAgent(ctx context.Context, kind lode.Name, key string, n uint64) (v DeadMessage, err error) {
	err = c.do(ctx, http.MethodPost, path("agents/%s/%s/replay", string(kind), key), url.Values{"n": {strconv.FormatUint(n, 10)}}, nil, &v, "")
	return v, err
}

// MoveAgents moves one partition of a kind.
func (c *Client) MoveAgents(ctx context.Context, kind lode.Name, m AgentMove) (v Partition, err error) {
	err = c.do(ctx, http.MethodPost, path("agents/%s/move", string(kind)), nil, m, &v, "")
	return v, err
}

// ListPartitions lists the partitions of a kind, or of all ("").
func (c *Client) ListPartitions(ctx context.Context, kind lode.Name) ([]Partition, error) {
	q := url.Values{}
	if kind != "" {
		q.Set("kind", string(kind))
	}
	var l List[Partition]
	err := c.do(ctx, http.MethodGet, path("partitions"), q, nil, &l, "")
	return l.Items, err
}

// ExportAgents calls see with every agent of a kind. An export without an
// ExportEnd is not whole, and an error.
func (c *Client) ExportAgents(ctx context.Context, kind lode.Name, see func(AgentDump) error) (ExportEnd, error) {
	v, err := c.open(ctx, path("agents/%s", string(kind)), nil)
	if err != nil {
		return ExportEnd{}, err
	}
	defer v.Body.Close()
	var end *ExportEnd
	d := json.NewDecoder(v.Body)
	for end == nil {
		var l exportLine
		if err := d.Decode(&l); err != nil {
			return ExportEnd{}, lode.Errorf(lode.Unavailable, "the export of %s was cut short: %w", kind, err).WithHint("export it again")
		}
		switch {
		case l.Error != nil:
			return ExportEnd{}, l.Error
		case l.End != nil:
			end = l.End
		case l.AgentDump != nil:
			if err := see(*l.AgentDump); err != nil {
				return ExportEnd{}, err
			}
		}
	}
	return *end, nil
}

// ImportAgents makes agents of the lines of r, which are those of an export.
func (c *Client) ImportAgents(ctx context.Context, kind lode.Name, r io.Reader, o ImportOptions) (v Imported, err error) {
	q := url.Values{}
	if o.Replace {
		q.Set("replace", "1")
	}
	resp, err := c.send(ctx, request{method: http.MethodPost, path: path("agents/%s/import", string(kind)), query: q, body: r, ctype: ndjson})
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	return v, decode(resp, &v)
}

// importDumps is ImportAgents of dumps at hand.
func (c *Client) importDumps(ctx context.Context, kind lode.Name, dumps []AgentDump, o ImportOptions) (Imported, error) {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		enc := json.NewEncoder(w)
		var err error
		for i := 0; i < len(dumps) && err == nil; i++ {
			err = enc.Encode(dumps[i])
		}
		w.CloseWithError(err)
	}()
	v, err := c.ImportAgents(ctx, kind, r, o)
	r.Close() // if it was not read to its end
	<-done
	return v, err
}

// AgentInvocation is one call of an agent through its door.
type AgentInvocation struct {
	Address  lode.Address
	Method   string
	Type     string // Content-Type: application/json is one argument, application/vnd.lode.args+json a list; "": none
	Body     io.Reader
	Header   http.Header
	Key      string        // Idempotency-Key
	Deadline time.Duration // 0: the kind's own
	Async    bool          // 202 and an id
}

// CallAgent calls a method of an agent. A status of the method's own, whatever
// it is, is an answer and no error.
func (c *Client) CallAgent(ctx context.Context, v AgentInvocation) (*Answer, error) {
	q := request{method: http.MethodPost, body: v.Body, ctype: v.Type,
		path: "/agents/" + string(v.Address.Name) + "/" + segment(v.Address.Key) + "/" + segment(v.Method)}
	return c.answer(ctx, q, v.Header, v.Key, v.Deadline, v.Async)
}
