package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"lode"
	"lode/api"
)

// DemoReport is what `lode demo` prints.
type DemoReport struct {
	At      time.Time  `json:"at"`
	Machine Machine    `json:"machine"`
	Calls   []DemoCall `json:"calls"`
	Rows    []DemoRow  `json:"rows"`
	Kill    *DemoKill  `json:"kill"`
	Votes   []DemoVote `json:"votes"`
}

// DemoCall is one function called over HTTP.
type DemoCall struct {
	Function string  `json:"function"`
	Language string  `json:"language"`
	Sent     string  `json:"sent"`
	Answer   string  `json:"answer"`
	Millis   float64 `json:"ms"`
}

// DemoRow is one job done one way. Every way's result was compared, word by
// word, with the plain program's.
type DemoRow struct {
	Job        string  `json:"job"`
	Way        string  `json:"way"`
	Seconds    float64 `json:"seconds"`
	Network    int64   `json:"network"`    // bytes
	Throughput float64 `json:"throughput"` // MB/s of the dataset
	Words      int     `json:"words"`      // distinct, with their label
}

// Demo runs the main job on three throw-away nodes: two functions over HTTP,
// then word counts over real mails and Go's own sources, three ways each; then
// it kills a node in the middle of a job and of a stream of calls; then agents
// elect a leader, and so do processes over ZeroMQ.
func Demo(ctx context.Context, o Options) (*DemoReport, error) {
	rep := &DemoReport{At: time.Now().UTC().Truncate(time.Second), Machine: thisMachine()}
	b := Bench{Name: "demo", run: func(ctx context.Context, r *runner) error { return r.demo(ctx, rep) }}
	if _, err := run(ctx, b, o); err != nil {
		return nil, err
	}
	return rep, nil
}

func (r *runner) demo(ctx context.Context, rep *DemoReport) error {
	mails, err := mailFiles()
	if err != nil {
		return err
	}
	sources, err := goSources()
	if err != nil {
		return err
	}
	bucket, err := r.bucket(ctx)
	if err != nil {
		return err
	}
	defer bucket.stop()
	start := time.Now()
	t, err := r.trio(ctx, "nodes")
	if err != nil {
		return err
	}
	defer t.stop()
	s := t.nodes[0]
	r.logf("three nodes, joined and with a copy of the bus each, in %.1f s", time.Since(start).Seconds())
	if err := r.demoCalls(ctx, s, rep); err != nil {
		return err
	}
	for _, d := range []struct {
		name  lode.Name
		files []string
	}{{"mails", mails}, {"gosrc", sources}} {
		start := time.Now()
		if err := s.put(ctx, d.name, api.PutOptions{Records: lode.RecordsFiles, Shard: 16 << 20}, d.files); err != nil {
			return err
		}
		v, err := s.GetDataset(ctx, d.name, 0)
		if err != nil {
			return err
		}
		r.logf("dataset %s: %d files, %.1f MB in %d shards, put in %.1f s", d.name, v.Count, float64(v.Bytes)/1e6, v.Shards, time.Since(start).Seconds())
	}
	for _, j := range []demoJob{{"words of the mails", "mails", "wordcount", "words", mails}, {"words of Go's sources", "gosrc", "wordcount", "words", sources},
		{"bag of words, ham and spam", "mails", "spam", "spam", mails}} {
		rows, err := r.demoJob(ctx, s, bucket, j)
		if err != nil {
			return fmt.Errorf("%s: %w", j.title, err)
		}
		rep.Rows = append(rep.Rows, rows...)
	}
	if rep.Kill, err = r.demoKill(ctx, t, sources); err != nil {
		return err
	}
	rep.Votes, err = r.demoVotes(ctx, s)
	return err
}

// demoCalls deploys a Go and a JavaScript function, of which the second calls
// the first, and calls both.
func (r *runner) demoCalls(ctx context.Context, s *site, rep *DemoReport) error {
	for _, f := range []struct{ name, body string }{
		{"censor", `"a free lunch"`},
		{"shop", `{"items":[{"price":12,"count":2},{"price":3,"count":10}],"note":"one free pen"}`},
	} {
		a, err := r.guest(ctx, f.name)
		if err != nil {
			return err
		}
		if err := s.deploy(ctx, lode.Name(f.name), a, nil, lode.Name(f.name)); err != nil {
			return err
		}
		var took time.Duration
		var answer []byte
		for range 3 { // the last one is warm
			start := time.Now()
			status, got, err := s.post(ctx, "/fn/"+f.name, []byte(f.body))
			if err != nil {
				return err
			}
			if status != 200 {
				return lode.Errorf(lode.Crashed, "function %s answered %d: %s", f.name, status, got)
			}
			took, answer = time.Since(start), got
		}
		r.logf("POST /fn/%s (%s)  %s  ->  %s", f.name, a.Language, f.body, bytes.TrimSpace(answer))
		rep.Calls = append(rep.Calls, DemoCall{f.name, a.Language, f.body, string(bytes.TrimSpace(answer)), float64(took.Microseconds()) / 1e3})
	}
	return nil
}

// demoJob is one job, done three ways.
type demoJob struct {
	title   string
	dataset lode.Name
	guest   string // its job and its first-generation function are in one module
	role    string // of the plain program
	files   []string
}

func (r *runner) demoJob(ctx context.Context, s *site, b *bucket, j demoJob) ([]DemoRow, error) {
	a, err := r.guest(ctx, j.guest)
	if err != nil {
		return nil, err
	}
	edit := func(_ lode.Name, f *lode.Function) {
		f.Limits.Memory = 512 << 20
		f.Egress = lode.Egress{Mode: "list", Allow: []string{b.addr}} // a private address: named, or refused
	}
	name := lode.Name(j.guest)
	if err := s.deploy(ctx, name, a, edit, name); err != nil {
		return nil, err
	}
	set, err := s.GetDataset(ctx, j.dataset, 0)
	if err != nil {
		return nil, err
	}
	row := func(way string, took time.Duration, network int64, words int) DemoRow {
		d := DemoRow{j.title, way, took.Seconds(), network, float64(set.Bytes) / took.Seconds() / 1e6, words}
		r.logf("%s, %s: %.2f s, %.2f MB over the network", j.title, way, d.Seconds, float64(network)/1e6)
		return d
	}
	if _, _, _, err := s.job(ctx, api.JobSpec{Function: name, Dataset: j.dataset}); err != nil { // warms, as the other ways are
		return nil, err
	}
	took, job, ours, err := s.job(ctx, api.JobSpec{Function: name, Dataset: j.dataset})
	if err != nil {
		return nil, err
	}
	first, err := r.firstGeneration(ctx, s, b, j.dataset, name)
	if err != nil {
		return nil, err
	}
	list, err := r.listFile(j.files)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	plain, err := exec.CommandContext(ctx, r.Self, "bench", "child", j.role, list).Output()
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "the plain Go program: %w", err)
	}
	plainTook := time.Since(start)
	if err := sameCounts(ours, plain); err != nil {
		return nil, fmt.Errorf("code to data against the plain program: %w", err)
	}
	if err := sameCounts(first.result, plain); err != nil {
		return nil, fmt.Errorf("first generation against the plain program: %w", err)
	}
	var words map[string]int64
	if err := json.Unmarshal(plain, &words); err != nil {
		return nil, err
	}
	return []DemoRow{row("code to data (lode run)", took, job.Moved, len(words)), row("data to code (first generation)", first.took, first.network, len(words)),
		row("plain parallel Go program", plainTook, 0, len(words))}, nil
}

// WriteTable prints the report for people.
func (d *DemoReport) WriteTable(w io.Writer) error {
	fmt.Fprintf(w, "\n%s, %d cores (%s)\n", d.At.Format("2006-01-02 15:04"), d.Machine.Cores, d.Machine.CPU)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "JOB\tWAY\tTIME\tNETWORK\tTHROUGHPUT\tWORDS")
	last := ""
	for _, r := range d.Rows {
		job := r.Job
		if job == last {
			job = ""
		}
		last = r.Job
		fmt.Fprintf(tw, "%s\t%s\t%.2f s\t%.2f MB\t%.1f MB/s\t%d\n", job, r.Way, r.Seconds, float64(r.Network)/1e6, r.Throughput, r.Words)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "The three results of each job are the same, word by word.")
	if err := d.Kill.write(w); err != nil {
		return err
	}
	return writeVotes(w, d.Votes)
}

// WriteJSON prints the report as one object.
func (d *DemoReport) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(d)
}

// versityPath finds the S3 server that the set-up script built.
func versityPath() (string, error) {
	for _, p := range []string{filepath.Join(".cache", "versitygw"), "versitygw"} {
		if _, err := os.Stat(p); err == nil {
			return filepath.Abs(p)
		}
		if full, err := exec.LookPath(p); err == nil {
			return full, nil
		}
	}
	return "", lode.Errorf(lode.NotFound, "the S3 server versitygw is not here").WithHint("run `make setup-demo` in the project's folder, and start from there")
}
