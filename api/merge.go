package api

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"lode"
)

// What each node answers for itself alone is made one answer here. All of it is
// pure: Everywhere asks the nodes.

// MergeTop makes one Top of what each node said. Rates, sandboxes, memory and
// cores add up. A median cannot be made of medians: P50 is the mean of the
// nodes' weighted by their rates, and P99 the worst of them. One part is
// returned as it is.
func MergeTop(parts []Top) Top {
	if len(parts) == 1 {
		return parts[0]
	}
	var out Top
	rows := map[lode.Name]*TopRow{}
	weight := map[lode.Name]float64{}
	for _, p := range parts {
		n := TopNode{Node: p.Node, Uptime: p.Uptime, CPU: p.CPU, Memory: p.Memory, Sandboxes: p.Sandboxes, Cache: p.Cache}
		if p.At.After(out.At) {
			out.At = p.At
		}
		out.Uptime = max(out.Uptime, p.Uptime)
		out.CPU += p.CPU
		out.Memory += p.Memory
		out.Sandboxes += p.Sandboxes
		out.Cache += p.Cache
		out.Missing = append(out.Missing, p.Missing...)
		for _, r := range p.Rows {
			n.Rate, n.Errors, n.Busy, n.Warm, n.Queued = n.Rate+r.Rate, n.Errors+r.Errors, n.Busy+r.Busy, n.Warm+r.Warm, n.Queued+r.Queued
			sum := rows[r.Name]
			if sum == nil {
				sum = &TopRow{Name: r.Name}
				rows[r.Name] = sum
			}
			w := weight[r.Name]
			sum.add(r, w, p.Node)
			weight[r.Name] = w + max(r.Rate, 1e-9)
		}
		out.Nodes = append(out.Nodes, n)
	}
	out.Rows = make([]TopRow, 0, len(rows))
	for _, r := range rows {
		out.Rows = append(out.Rows, *r)
	}
	slices.SortFunc(out.Rows, func(a, b TopRow) int {
		return cmp.Or(cmp.Compare(b.Rate, a.Rate), strings.Compare(string(a.Name), string(b.Name)))
	})
	slices.SortFunc(out.Nodes, func(a, b TopNode) int { return strings.Compare(a.Node, b.Node) })
	slices.Sort(out.Missing)
	return out
}

// add adds what node said of the same function; w is the rate added so far.
func (r *TopRow) add(o TopRow, w float64, node string) {
	ow := max(o.Rate, 1e-9)
	r.P50 = time.Duration((float64(r.P50)*w + float64(o.P50)*ow) / (w + ow))
	r.P99 = max(r.P99, o.P99)
	r.Rev = max(r.Rev, o.Rev)
	r.Rate += o.Rate
	r.Errors += o.Errors
	r.Busy += o.Busy
	r.Warm += o.Warm
	r.Queued += o.Queued
	r.CPU += o.CPU
	r.Memory += o.Memory
	if len(o.Nodes) > 0 {
		r.Nodes = append(r.Nodes, o.Nodes...)
	} else if node != "" {
		r.Nodes = append(r.Nodes, node)
	}
	slices.Sort(r.Nodes)
	r.Nodes = slices.Compact(r.Nodes)
}

// MergeItems makes one of what two nodes say of the same name: where it is adds
// up, and how often it is called.
func MergeItems(a, b Item) Item {
	a.Where = append(slices.Clone(a.Where), b.Where...)
	slices.Sort(a.Where)
	a.Where = slices.Compact(a.Where)
	a.Calls += b.Calls
	if b.Last.After(a.Last) {
		a.Last = b.Last
	}
	return a
}

// NodeChecks is what one node found out, or why it did not answer.
type NodeChecks struct {
	Node   string
	Checks []Check
	Err    error
}

// MergeChecks makes one list: by node, each node's in its own order. A node
// that did not answer fails.
func MergeChecks(parts []NodeChecks) []Check {
	parts = slices.Clone(parts)
	slices.SortStableFunc(parts, func(a, b NodeChecks) int { return strings.Compare(a.Node, b.Node) })
	out := []Check{}
	for _, p := range parts {
		for _, k := range p.Checks {
			k.Node = p.Node
			out = append(out, k)
		}
		if p.Err != nil {
			out = append(out, Check{Node: p.Node, Name: "node", State: CheckFail, Detail: "does not answer: " + lode.AsError(p.Err).Error(),
				Advice: "lode nodes shows since when; start it again, or take it out: lode nodes rm " + p.Node})
		}
	}
	return out
}

// MergeExplanations puts together what several nodes, at least one, know of
// the same thing: the first says what it is, and the steps, lines and facts of
// the others are added.
func MergeExplanations(parts []Explanation) Explanation {
	out := parts[0]
	out.Facts = map[string]string{}
	out.Steps, out.Logs, out.Waits = []Step{}, nil, nil
	seen := map[LogLine]bool{}
	for _, p := range parts {
		out.Steps = append(out.Steps, p.Steps...)
		for _, l := range p.Logs {
			if !seen[l] {
				seen[l] = true
				out.Logs = append(out.Logs, l)
			}
		}
		for k, v := range p.Facts {
			if _, ok := out.Facts[k]; !ok {
				out.Facts[k] = v
			}
		}
		if out.Candidates == nil {
			out.Candidates = p.Candidates
		}
		if out.Call == nil {
			out.Call = p.Call
		}
		if out.Job == nil {
			out.Job = p.Job
		}
		out.Waits = append(out.Waits, p.Waits...)
	}
	out.Steps = orderSteps(out.Steps)
	slices.SortStableFunc(out.Logs, func(a, b LogLine) int { return a.At.Compare(b.At) })
	return out
}

// orderSteps puts those with a time in its order, behind those without, and
// says the same thing once.
func orderSteps(steps []Step) []Step {
	slices.SortStableFunc(steps, func(a, b Step) int { return a.At.Compare(b.At) })
	seen := map[Step]bool{}
	return slices.DeleteFunc(steps, func(s Step) bool {
		had := seen[s]
		seen[s] = true
		return had
	})
}

// maxSkew is how far a node's clock may be from the answering node's before
// somebody should look: tokens, schedules and certificates go by clocks.
const maxSkew = 2 * time.Second

// CheckNodes is what the list of nodes alone shows.
func CheckNodes(l NodeList, now time.Time) []Check {
	var out []Check
	versions := map[string][]string{}
	for _, n := range l.Items {
		if n.State == NodeLost {
			since := ""
			if n.Link != nil && !n.Link.LostSince.IsZero() {
				since = " for " + now.Sub(n.Link.LostSince).Round(time.Second).String()
			}
			out = append(out, Check{Node: n.Name, Name: "link", State: CheckFail, Detail: "lost" + since,
				Advice: "start it again; if its machine is gone: lode nodes rm " + n.Name + ", then let another join"})
			continue
		}
		if n.Link != nil && n.Link.Skew.Abs() > maxSkew {
			out = append(out, Check{Node: n.Name, Name: "clock", State: CheckWarn, Detail: fmt.Sprintf("is %s from the answering node's", n.Link.Skew.Round(time.Millisecond)),
				Advice: "let chrony or systemd-timesyncd set the clocks of all nodes"})
		}
		versions[n.Version] = append(versions[n.Version], n.Name)
	}
	if len(versions) > 1 {
		var parts []string
		for v, names := range versions {
			parts = append(parts, v+" on "+strings.Join(names, ", "))
		}
		slices.Sort(parts)
		out = append(out, Check{Name: "versions", State: CheckWarn, Detail: strings.Join(parts, "; "), Advice: "finish the rolling restart with one version"})
	}
	return append(out, l.Cluster.checks(len(l.Items))...)
}

func (s *ClusterState) checks(nodes int) []Check {
	bus := Check{Name: "bus", State: CheckOK, Detail: s.Line() + "; an acknowledged write survives " + s.SurvivesText()}
	switch {
	case !s.Quorum:
		bus.State, bus.Advice = CheckFail, "writes are refused until a majority of the members answers: start the lost ones again"
	case s.Answering < len(s.Members):
		bus.State, bus.Advice = CheckWarn, "start the lost member again, or let another node join: it gets the seat of one that stays lost for a minute"
	case nodes == 2 && s.External == "":
		bus.State, bus.Advice = CheckWarn, "two nodes keep one copy of what is acknowledged: add a third"
	}
	out := []Check{bus}
	if s.Keeper == "" {
		out = append(out, Check{Name: "keeper", State: CheckFail, Detail: "there is none: asynchronous calls, queues, schedules and jobs stand still",
			Advice: "one takes over within seconds while writes are acknowledged; if none does, look at the bus"})
	}
	return out
}

// Line is "3 of 3 bus members".
func (s *ClusterState) Line() string {
	switch {
	case s.External != "":
		return "the bus is " + s.External
	case len(s.Members) == 1:
		return fmt.Sprintf("%d of 1 bus member", min(s.Answering, 1))
	}
	return fmt.Sprintf("%d of %d bus members", min(s.Answering, len(s.Members)), len(s.Members)) // while they change, both may answer
}

// SurvivesText is what an acknowledged write survives: "1 node".
func (s *ClusterState) SurvivesText() string {
	switch {
	case s.External != "":
		return "what your NATS cluster does"
	case s.Survives <= 0:
		return "a crash, not the loss of a disk"
	case s.Survives == 1:
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", s.Survives)
}
