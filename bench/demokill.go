package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"lode"
	"lode/api"
)

// DemoKill is what became of a job and of a stream of calls when a node was
// killed in the middle of both.
type DemoKill struct {
	Node    string         `json:"node"`
	Done    int            `json:"done"` // shards of the job that were done when it was killed
	Shards  int            `json:"shards"`
	Shares  []api.JobShare `json:"shares"`
	Same    bool           `json:"same"`    // the result is that of the plain program
	Calls   int            `json:"calls"`   // during the job
	Answers int            `json:"answers"` // of them, those that were answered with 200
	Failed  map[string]int `json:"failed"`  // the others, by method
	Why     string         `json:"why,omitempty"`
	Retried int64          `json:"retried"` // calls that were on the node and ran elsewhere after all
	Back    float64        `json:"back"`    // seconds from its start until it was a member again
}

// demoKill drains a, so that b and c have the work, and kills c while they work
// on a job and on calls that come in at a.
func (r *runner) demoKill(ctx context.Context, t *trio, files []string) (*DemoKill, error) {
	list, err := r.listFile(files)
	if err != nil {
		return nil, err
	}
	plain, err := exec.CommandContext(ctx, r.Self, "bench", "child", "words", list).Output()
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "the plain Go program: %w", err)
	}
	if err := t.deployHash(ctx); err != nil {
		return nil, err
	}
	if _, err := t.nodes[0].DrainNode(ctx, trioNames[0], time.Minute); err != nil {
		return nil, err
	}
	k := &DemoKill{Node: trioNames[2], Failed: map[string]int{}}
	before, err := t.nodes[0].metric(ctx, "lode_forward_retried_total")
	if err != nil {
		return nil, err
	}
	calls := startTimed(ctx, []string{t.nodes[0].addr}, 8, body1K())
	defer calls.stop()
	j, err := t.nodes[0].CreateJob(ctx, api.JobSpec{Function: "wordcount", Dataset: "gosrc"})
	if err != nil {
		return nil, err
	}
	for j.Done*3 < j.Shards && !api.Ended(j.State) {
		time.Sleep(20 * time.Millisecond)
		if j, err = t.nodes[0].GetJob(ctx, j.ID, 0); err != nil {
			return nil, err
		}
	}
	k.Done, k.Shards = j.Done, j.Shards
	t.nodes[2].kill()
	r.logf("killed node c with %d of %d shards done", j.Done, j.Shards)
	if err := r.demoAfter(ctx, t, k, j.ID, plain); err != nil {
		return nil, err
	}
	time.Sleep(500 * time.Millisecond)
	if err := calls.stop(); err != nil {
		return nil, err
	}
	k.Calls = len(calls.all)
	for _, c := range calls.all {
		if c.failed == "" {
			k.Answers++
			continue
		}
		k.Failed[c.method]++
		k.Why = c.failed
	}
	after, err := t.nodes[0].metric(ctx, "lode_forward_retried_total")
	if err != nil {
		return nil, err
	}
	k.Retried = int64(after - before)
	return k, r.demoBack(ctx, t, k)
}

// demoAfter waits for the job and holds its result against the plain program.
func (r *runner) demoAfter(ctx context.Context, t *trio, k *DemoKill, id string, plain []byte) error {
	s := t.nodes[0]
	var j api.Job
	var err error
	for !api.Ended(j.State) {
		if j, err = s.GetJob(ctx, id, 30*time.Second); err != nil {
			return err
		}
	}
	if j.State != lode.StateDone {
		return lode.Errorf(lode.Crashed, "the job is %s after the kill: %v", j.State, j.Error)
	}
	c, err := s.JobResult(ctx, id)
	if err != nil {
		return err
	}
	defer c.Body.Close()
	got, err := io.ReadAll(c.Body)
	if err != nil {
		return err
	}
	if err := sameCounts(got, plain); err != nil {
		return fmt.Errorf("the job whose node was killed against the plain program: %w", err)
	}
	k.Same, k.Shares = true, j.Shares
	return nil
}

// demoBack starts the node again and takes the drain back.
func (r *runner) demoBack(ctx context.Context, t *trio, k *DemoKill) (err error) {
	start := time.Now()
	if t.nodes[2], err = r.restart(ctx, t.nodes[2]); err != nil {
		return err
	}
	if _, err := t.nodes[0].UndrainNode(ctx, trioNames[0]); err != nil {
		return err
	}
	if err := t.settled(ctx, 3); err != nil {
		return err
	}
	k.Back = time.Since(start).Seconds()
	return nil
}

// metric reads one value of a node's /metrics.
func (s *site) metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, lode.Errorf(lode.Unavailable, "read the metrics of %s: %w", s.addr, err)
	}
	defer resp.Body.Close()
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, lode.Errorf(lode.NotFound, "node %s has no metric %s", s.addr, name)
}

// write prints the report for people.
func (k *DemoKill) write(w io.Writer) error {
	if k == nil {
		return nil
	}
	fmt.Fprintf(w, "\nkill -9 of node %s, with %d of %d shards of a job done and calls under way:\n", k.Node, k.Done, k.Shards)
	for _, s := range k.Shares {
		lost := ""
		if s.Lost {
			lost = ", lost"
		}
		fmt.Fprintf(w, "  node %s  %d shards counted, %d tried again%s\n", s.Node, s.Shards, s.Retried, lost)
	}
	fmt.Fprintf(w, "  the result is the plain program's, word by word\n")
	fmt.Fprintf(w, "  %d of %d calls were answered with 200; %d were on the node and ran again elsewhere", k.Answers, k.Calls, k.Retried)
	for method, n := range k.Failed {
		fmt.Fprintf(w, "; %d %s failed: %s", n, method, k.Why)
	}
	_, err := fmt.Fprintf(w, "\n  node %s is back as a member %.1f s after its start\n", k.Node, k.Back)
	return err
}
