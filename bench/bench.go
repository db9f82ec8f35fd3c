// Package bench is what stands behind `lode bench` and `lode demo`: each bench
// runs both sides of a comparison in turn in one run, on the machine it is
// started on, and reports medians with their spread as ratios.
//
// It promises that a figure is never printed without what it was measured
// against, and that everything a bench starts it stops. It may import any
// room; only the command imports it.
package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"lode"
)

// Options of a run. The zero value is the run that README's figures come from.
type Options struct {
	Rounds int           // of each side in turn; 0 = 5
	Each   time.Duration // measured time a side and round; 0 = the bench's own
	Self   string        // path of the lode binary, to start nodes with; "" = this one
	Log    io.Writer     // progress; nil = none
}

// Report is the result of one bench: the JSON of `lode bench NAME -o json`.
type Report struct {
	Bench   string    `json:"bench"`
	At      time.Time `json:"at"`
	Machine Machine   `json:"machine"`
	Figures []Figure  `json:"figures"`
}

// Machine is where it was measured.
type Machine struct {
	Cores  int    `json:"cores"`
	CPU    string `json:"cpu"`
	Memory int64  `json:"memory"` // bytes
}

// Figure is one measured value. Ratio is value/against or against/value,
// whichever reads "higher is better" for throughput and "lower is better" for
// time; Spread is that of the ratio over the rounds, or of the value where
// there is no ratio.
type Figure struct {
	Name    string     `json:"name"`
	Value   float64    `json:"value"`
	Unit    string     `json:"unit"`
	Against float64    `json:"against,omitempty"` // the other side, same unit
	Ratio   float64    `json:"ratio,omitempty"`
	Spread  [2]float64 `json:"spread"`
	Must    string     `json:"must,omitempty"` // "<= 40 us", ">= 0.6": of Ratio if it begins with a bare number and there is one
	Aim     string     `json:"aim,omitempty"`
	Met     *bool      `json:"met,omitempty"`
}

// Bench is one bench by name.
type Bench struct {
	Name string
	Help string // one line
	run  func(context.Context, *runner) error
}

// List returns every bench, in the order of `lode bench --help`.
func List() []Bench {
	return []Bench{
		{"invoke", "HTTP calls into clean sandboxes against bare Go net/http", benchInvoke},
		{"agents", "durable turns, calls between agents, moves and take-overs, against raw TCP and ZeroMQ", benchAgents},
		{"election", "the bully algorithm among agents, over a blackboard, and among processes over ZeroMQ", benchElection},
		{"cold", "first requests: module in memory, on disk, compiled elsewhere, compiled here", benchCold},
		{"cluster", "three nodes: a hop, kill -9, rolling restart, growing from one, jobs, memory", benchCluster},
		{"scan", "jobs over mapped shards against plain C and Go programs", benchScan},
		{"link", "calls between two nodes against raw TCP and C ZeroMQ", benchLink},
	}
}

// Run runs the bench called name.
func Run(ctx context.Context, name string, o Options) (*Report, error) {
	var names []string
	for _, b := range List() {
		if b.Name == name {
			return run(ctx, b, o)
		}
		names = append(names, b.Name)
	}
	e := lode.Errorf(lode.NotFound, "no bench %q", name)
	e.Hint = "benches: " + strings.Join(names, ", ")
	if s := lode.Suggest(name, names); s != "" {
		e.Hint = fmt.Sprintf("did you mean %q? %s", s, e.Hint)
	}
	return nil, e
}

func run(ctx context.Context, b Bench, o Options) (*Report, error) {
	if o.Rounds <= 0 {
		o.Rounds = 5
	}
	if o.Self == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, lode.Errorf(lode.Internal, "find the lode binary: %w", err)
		}
		o.Self = self
	}
	dir, err := os.MkdirTemp("", "lode-bench-")
	if err != nil {
		return nil, lode.Errorf(lode.Full, "make a scratch folder: %w", err)
	}
	defer os.RemoveAll(dir)
	r := &runner{Options: o, dir: dir, report: &Report{Bench: b.Name, At: time.Now().UTC().Truncate(time.Second), Machine: thisMachine()}}
	if err := b.run(ctx, r); err != nil {
		return nil, err
	}
	return r.report, nil
}

// runner carries one run's options and collects its figures.
type runner struct {
	Options
	dir    string // scratch, removed at the end
	report *Report
}

func (r *runner) logf(format string, args ...any) {
	if r.Log != nil {
		fmt.Fprintf(r.Log, format+"\n", args...)
	}
}

// each is the measured time of one side in one round.
func (r *runner) each(def time.Duration) time.Duration {
	if r.Each > 0 {
		return r.Each
	}
	return def
}

// ratio adds a figure of two sides measured in turn: vals[i] and against[i]
// are of round i. The ratio is vals/against, round by round.
func (r *runner) ratio(name, unit string, vals, against []float64, must, aim string) {
	rs := make([]float64, len(vals))
	for i := range vals {
		rs[i] = vals[i] / against[i]
	}
	r.add(Figure{Name: name, Value: median(vals), Unit: unit, Against: median(against), Ratio: median(rs),
		Spread: [2]float64{slices.Min(rs), slices.Max(rs)}, Must: must, Aim: aim})
}

// value adds a figure that stands alone.
func (r *runner) value(name, unit string, vals []float64, must, aim string) {
	r.add(Figure{Name: name, Value: median(vals), Unit: unit, Spread: [2]float64{slices.Min(vals), slices.Max(vals)}, Must: must, Aim: aim})
}

func (r *runner) add(f Figure) {
	if f.Must != "" {
		v := f.Value
		if f.Ratio != 0 {
			v = f.Ratio
		}
		met := holds(v, f.Must)
		f.Met = &met
	}
	f.Value, f.Against, f.Ratio = round(f.Value), round(f.Against), round(f.Ratio)
	f.Spread = [2]float64{round(f.Spread[0]), round(f.Spread[1])}
	r.report.Figures = append(r.report.Figures, f)
	r.logf("  %s: %s", f.Name, f.text())
}

// holds reports whether v keeps to "<= 40 us", ">= 0.6", "0".
func holds(v float64, must string) bool {
	op, rest, ok := strings.Cut(must, " ")
	if !ok {
		op, rest = "<=", must
	}
	num, _, _ := strings.Cut(rest, " ")
	want, err := strconv.ParseFloat(strings.ReplaceAll(strings.TrimRight(num, "x%"), ",", ""), 64)
	if err != nil {
		return false
	}
	if op == ">=" {
		return v >= want
	}
	return v <= want
}

func round(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return v
	}
	p := math.Pow(10, 3-math.Ceil(math.Log10(math.Abs(v))))
	return math.Round(v*p) / p
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func (f Figure) text() string {
	s := fmt.Sprintf("%v %s", f.Value, f.Unit)
	if f.Ratio != 0 {
		s += fmt.Sprintf(" against %v: %vx (%v-%v)", f.Against, f.Ratio, f.Spread[0], f.Spread[1])
	}
	return s
}

// WriteTable prints the report for people.
func (rep *Report) WriteTable(w io.Writer) error {
	fmt.Fprintf(w, "%s, %s, %d cores (%s)\n", rep.Bench, rep.At.Format("2006-01-02 15:04"), rep.Machine.Cores, rep.Machine.CPU)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "FIGURE\tVALUE\tAGAINST\tRATIO\tSPREAD\tMUST\tAIM\tMET")
	for _, f := range rep.Figures {
		against, ratio, met := "-", "-", "-"
		if f.Ratio != 0 {
			against, ratio = fmt.Sprintf("%v", f.Against), fmt.Sprintf("%v", f.Ratio)
		}
		if f.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*f.Met]
		}
		fmt.Fprintf(tw, "%s\t%v %s\t%s\t%s\t%v-%v\t%s\t%s\t%s\n", f.Name, f.Value, f.Unit, against, ratio, f.Spread[0], f.Spread[1], or(f.Must, "-"), or(f.Aim, "-"), met)
	}
	return tw.Flush()
}

// WriteJSON prints the report as one object.
func (rep *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(rep)
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func thisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), CPU: runtime.GOARCH}
	if v := procField("/proc/cpuinfo", "model name"); v != "" {
		m.CPU = v
	}
	if f := strings.Fields(procField("/proc/meminfo", "MemTotal")); len(f) == 2 {
		kib, _ := strconv.ParseInt(f[0], 10, 64)
		m.Memory = kib << 10
	}
	return m
}

// procField returns the value of the first line "name : value" of a /proc
// file, or "".
func procField(file, name string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
