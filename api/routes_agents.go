package api

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"

	"lode"
)

const ndjson = "application/x-ndjson"

// The bounds of an import: of one line, and of what is handed on at once.
const (
	maxDump     = 16 << 20 // bytes of a line
	importBatch = 64       // dumps
	importBytes = 4 << 20
)

func agentRoutes() []route {
	return []route{
		{id: "agents.list", method: "GET", path: "/v1/agents", role: RoleRead, summary: "List agents, by address",
			query: append([]param{{"kind", "string", "of this kind"}, {"partition", "integer", "of this partition of the kind"}}, paging...), reply: List[Agent]{}, serve: listAgents},
		{id: "agents.get", method: "GET", path: "/v1/agents/{kind}/{key}", role: RoleCall, summary: "An agent with its state, timers, sockets, dead messages and last turns", reply: AgentDetail{}, serve: getAgent},
		{id: "agents.remove", method: "DELETE", path: "/v1/agents/{kind}/{key}", role: RoleDeploy, write: true, summary: "Remove an agent with its state and timers", serve: removeAgent},
		{id: "agents.replay", method: "POST", path: "/v1/agents/{kind}/{key}/replay", role: RoleCall, write: true, summary: "Make a dead message a message again",
			query: []param{{"n", "integer", "its number"}}, reply: DeadMessage{}, serve: replayAgent},
		{id: "agents.move", method: "POST", path: "/v1/agents/{kind}/move", role: RoleDeploy, write: true, summary: "Move a partition, or that of a key, to another node", body: AgentMove{}, reply: Partition{}, serve: moveAgents},
		{id: "agents.export", method: "GET", path: "/v1/agents/{kind}", role: RoleCall, summary: "Every agent of a kind with its state: one JSON object a line, the last one says what is in it", rawType: ndjson, serve: exportAgents},
		{id: "agents.import", method: "POST", path: "/v1/agents/{kind}/import", role: RoleDeploy, write: true, summary: "Make agents of the lines of an export",
			query: []param{{"replace", "boolean", "agents that are there become what the lines say"}}, bodyRaw: ndjson, reply: Imported{}, serve: importAgents},
		{id: "partitions.list", method: "GET", path: "/v1/partitions", role: RoleRead, summary: "List the partitions of kinds and who owns them",
			query: []param{{"kind", "string", "of this kind"}}, reply: List[Partition]{}, serve: listPartitions},
	}
}

// CheckKey checks the key of an agent: 1 to 512 bytes.
func CheckKey(kind lode.Name, key string) error {
	if key == "" {
		return lode.Errorf(lode.Invalid, "the key of an agent of kind %s is empty", kind).WithHint("an address is KIND/KEY, as in %s/alice", kind)
	}
	_, err := lode.ParseAddress(string(kind) + "/" + key)
	return err
}

// withAgents runs do with the noun and the kind in the path.
func (c *call) withAgents(do func(Agents, lode.Name) error) error {
	if c.b.Agents == nil {
		return missing("agents")
	}
	return named(c, "kind", func(n lode.Name) error { return do(c.b.Agents, n) })
}

// withAgent is withAgents with the key in the path too.
func (c *call) withAgent(do func(a Agents, kind lode.Name, key string) error) error {
	return c.withAgents(func(a Agents, kind lode.Name) error {
		key := c.r.PathValue("key")
		if err := CheckKey(kind, key); err != nil {
			return err
		}
		return do(a, kind, key)
	})
}

// kindParam is the query's kind, "" if there is none.
func (c *call) kindParam() (lode.Name, error) {
	v := c.r.URL.Query().Get("kind")
	if v == "" {
		return "", nil
	}
	return lode.ParseName(v)
}

func listAgents(c *call) error {
	if c.b.Agents == nil {
		return missing("agents")
	}
	kind, err := c.kindParam()
	if err != nil {
		return err
	}
	f := AgentFilter{Kind: kind}
	if c.r.URL.Query().Has("partition") {
		if f.Partition, err = c.int("partition", 0); err != nil {
			return err
		}
		if f.Partition++; kind == "" {
			return lode.Errorf(lode.Invalid, "a partition is one of a kind").WithHint("say which: ?kind=KIND&partition=%d", f.Partition-1)
		}
	}
	return listing(c, func(p Page) (List[Agent], error) { return c.b.Agents.ListAgents(c.r.Context(), c.ns, f, p) })
}

func getAgent(c *call) error {
	return c.withAgent(func(a Agents, kind lode.Name, key string) error {
		v, err := a.GetAgent(c.r.Context(), c.ns, kind, key)
		if err != nil {
			return err
		}
		if v.State == nil {
			v.State = []StateValue{}
		}
		return c.json(v, "")
	})
}

func removeAgent(c *call) error {
	return c.withAgent(func(a Agents, kind lode.Name, key string) error {
		if err := a.RemoveAgent(c.r.Context(), c.ns, kind, key); err != nil {
			return err
		}
		return c.noContent()
	})
}

func replayAgent(c *call) error {
	return c.withAgent(func(a Agents, kind lode.Name, key string) error {
		n, err := strconv.ParseUint(c.r.URL.Query().Get("n"), 10, 64)
		if err != nil {
			return lode.Errorf(lode.Invalid, "n=%q is not the number of a dead message", c.r.URL.Query().Get("n")).
				WithHint("lode agents dead %s/%s lists them", kind, key)
		}
		v, err := a.ReplayAgent(c.r.Context(), c.ns, kind, key, n)
		if err != nil {
			return err
		}
		return c.json(v, "")
	})
}

func moveAgents(c *call) error {
	return c.withAgents(func(a Agents, kind lode.Name) error {
		var m AgentMove
		if err := c.read(&m); err != nil {
			return err
		}
		if (m.Partition == nil) == (m.Key == "") {
			return lode.Errorf(lode.Invalid, "want one of partition and key")
		}
		if m.Key != "" {
			if err := CheckKey(kind, m.Key); err != nil {
				return err
			}
		}
		place, err := a.Where(c.r.Context(), c.ns, kind, m.Key)
		if err != nil {
			return err
		}
		n := place.Partition
		if m.Partition != nil {
			n = *m.Partition
		}
		if n < 0 || n >= place.Partitions {
			return lode.Errorf(lode.NotFound, "kind %s has no partition %d", kind, n).WithHint("it has 0 to %d", place.Partitions-1)
		}
		v, err := a.MovePartition(c.r.Context(), c.ns, kind, n, m.To)
		if err != nil {
			return err
		}
		return c.json(v, "")
	})
}

func listPartitions(c *call) error {
	if c.b.Agents == nil {
		return missing("agents")
	}
	kind, err := c.kindParam()
	if err != nil {
		return err
	}
	all, err := c.b.Agents.ListPartitions(c.r.Context(), c.ns, kind)
	if err != nil {
		return err
	}
	if all == nil {
		all = []Partition{}
	}
	return c.json(List[Partition]{Items: all}, "")
}

// ExportEnd is the last line of an export that is whole, under "end".
type ExportEnd struct {
	Partitions []int `json:"partitions"` // that are in it
	Lines      int64 `json:"lines"`      // before this one
}

// exportLine is one line of an export: a dump, or its end.
type exportLine struct {
	*AgentDump
	End   *ExportEnd  `json:"end,omitempty"`
	Error *lode.Error `json:"error,omitempty"` // the export has failed here
}

func exportAgents(c *call) error {
	return c.withAgents(func(a Agents, kind lode.Name) error {
		w := &flushWriter{c: c, ctype: ndjson}
		enc := json.NewEncoder(w)
		end := ExportEnd{Partitions: []int{}}
		covered, err := a.ExportAgents(c.r.Context(), c.ns, kind, func(d AgentDump) error {
			end.Lines++
			return enc.Encode(d)
		})
		if err != nil && c.sent {
			return c.gone(enc.Encode(exportLine{Error: lode.AsError(err)}))
		}
		if err != nil {
			return err
		}
		end.Partitions = append(end.Partitions, covered...)
		return c.gone(enc.Encode(exportLine{End: &end}))
	})
}

func importAgents(c *call) error {
	return c.withAgents(func(a Agents, kind lode.Name) error {
		var o ImportOptions
		var err error
		if o.Replace, err = c.bool("replace"); err != nil {
			return err
		}
		sum, err := importLines(c.r.Body, kind, func(batch []AgentDump) (Imported, error) {
			return a.ImportAgents(c.r.Context(), c.ns, kind, batch, o)
		})
		if err != nil && sum.Agents > 0 {
			e := *lode.AsError(err)
			e.Detail = "after " + strconv.FormatInt(sum.Agents, 10) + " agents: " + e.Error()
			return &e
		}
		if err != nil {
			return err
		}
		return c.json(sum, "")
	})
}

// importLines reads dumps, and hands them on in batches.
func importLines(r io.Reader, kind lode.Name, to func([]AgentDump) (Imported, error)) (sum Imported, err error) {
	var batch []AgentDump
	size, line := 0, 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		n, err := to(batch)
		sum.add(n)
		batch, size = nil, 0
		return err
	}
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), maxDump)
	for s.Scan() {
		line++
		if len(strings.TrimSpace(string(s.Bytes()))) == 0 {
			continue
		}
		var l exportLine
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			return sum, lode.Errorf(lode.Invalid, "line %d is no agent: %w", line, err).WithHint("want the lines of lode agents export")
		}
		if l.End != nil {
			continue
		}
		if l.Error != nil {
			return sum, lode.Errorf(lode.Invalid, "line %d: the export failed here: %s", line, l.Error.Error())
		}
		if l.AgentDump == nil {
			return sum, lode.Errorf(lode.Invalid, "line %d is no agent", line).WithHint("want the lines of lode agents export")
		}
		if err := CheckKey(kind, l.Key); err != nil {
			return sum, lode.Errorf(lode.Invalid, "line %d: %w", line, err)
		}
		batch, size = append(batch, *l.AgentDump), size+len(s.Bytes())
		if len(batch) == importBatch || size >= importBytes {
			if err := flush(); err != nil {
				return sum, err
			}
		}
	}
	switch err := s.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return sum, lode.Errorf(lode.TooLarge, "line %d has over %d bytes", line+1, maxDump)
	case err != nil:
		return sum, bodyError(err)
	}
	return sum, flush()
}

func (i *Imported) add(n Imported) {
	i.Agents += n.Agents
	i.Keys += n.Keys
	i.Timers += n.Timers
	i.Bytes += n.Bytes
}

// explainAgent answers explain/{ref} of an address.
func (c *call) explainAgent(ref string) error {
	if c.b.Agents == nil {
		return missing("agents")
	}
	a, err := lode.ParseAddress(ref)
	if err != nil {
		return err
	}
	v, err := c.b.Agents.ExplainAgent(c.r.Context(), c.ns, a.Name, a.Key)
	if err != nil {
		return err
	}
	return c.json(v, "")
}
