package api

import (
	"time"

	"lode"
)

// JobSpec asks for a job: a function over each shard of a dataset, and a
// reduction of the partial results.
type JobSpec struct {
	// One of Function and Inline: a deployed name (Alias picks the revision),
	// or code that was built and uploaded for this job alone.
	Function lode.Name      `json:"function,omitempty"`
	Alias    string         `json:"alias,omitempty"`
	Inline   *lode.Function `json:"inline,omitempty"`
	// Handler is the job in a module with several.
	Handler string `json:"handler,omitempty"`

	Dataset lode.Name         `json:"dataset"`
	Version int               `json:"version,omitempty"` // 0: the newest
	Reduce  string            `json:"reduce,omitempty"`  // "": the code's own, else concat
	Into    lode.Name         `json:"into,omitempty"`    // the result becomes a dataset
	Limit   int               `json:"limit,omitempty"`   // sandboxes at once; 0: as many as cores
	Retries int               `json:"retries,omitempty"` // of one shard; 0 = 2, -1 = none
	OKExit  []int             `json:"ok_exit,omitempty"`
	Where   map[string]string `json:"where,omitempty"` // node labels that must hold
}

// Job is one job and how far it is.
type Job struct {
	ID        string        `json:"id"` // j-XXXXXXXX
	State     lode.State    `json:"state"`
	Function  string        `json:"function"` // "name@rev", or "inline"
	Dataset   lode.Name     `json:"dataset"`
	Version   int           `json:"version"`
	Reduce    string        `json:"reduce"`
	Into      lode.Name     `json:"into,omitempty"`
	Created   time.Time     `json:"created"`
	Ended     time.Time     `json:"ended,omitzero"`
	Shards    int           `json:"shards"`
	Done      int           `json:"done"`
	Running   int           `json:"running"`
	Retried   int           `json:"retried"`
	Bytes     int64         `json:"bytes"` // of the shards
	Read      int64         `json:"read"`  // bytes read in place so far
	Moved     int64         `json:"moved"` // bytes over the network so far
	Wall      time.Duration `json:"wall"`  // nanoseconds so far
	CPU       time.Duration `json:"cpu"`   // nanoseconds in the guests
	Nodes     []string      `json:"nodes"` // that took part
	Shares    []JobShare    `json:"shares,omitempty"`
	ResultLen int64         `json:"result_len"` // bytes
	Error     *lode.Error   `json:"error,omitempty"`
}

// JobShare is what one node did for a job.
type JobShare struct {
	Node    string        `json:"node"`
	Shards  int           `json:"shards"` // done, and their results used
	Running int           `json:"running"`
	Retried int           `json:"retried"` // tries that failed here, or were lost with the node
	Read    int64         `json:"read"`    // bytes read in place
	Moved   int64         `json:"moved"`   // bytes that came over the network
	CPU     time.Duration `json:"cpu"`
	Lost    bool          `json:"lost,omitempty"` // the node was lost while the job ran
}

// Ended reports whether s is a last state.
func Ended(s lode.State) bool {
	return s == lode.StateDone || s == lode.StateFailed || s == lode.StateCancelled
}

// LogFilter picks lines. Zero fields pick all.
type LogFilter struct {
	Name       lode.Name
	Invocation lode.InvocationID
	Job        string
	Since      time.Time
	Tail       int    // the last lines at most; 0 = all since Since
	Grep       string // RE2
	Follow     bool
}

// LogLine is one line, one NDJSON object on the wire.
type LogLine struct {
	At         time.Time         `json:"at"`
	Node       string            `json:"node,omitempty"`
	Name       lode.Name         `json:"name,omitempty"` // function; "" = the node itself
	Rev        int               `json:"rev,omitempty"`
	Invocation lode.InvocationID `json:"invocation,omitempty"`
	Job        string            `json:"job,omitempty"`
	Trace      string            `json:"trace,omitempty"`
	Level      string            `json:"level"` // debug, info, warn, error
	Text       string            `json:"text"`  // without the line's end
}

// Top is what runs now, on one node or, merged, on all; see MergeTop.
type Top struct {
	At        time.Time `json:"at"`
	Node      string    `json:"node"`   // "": of several, see Nodes
	Uptime    float64   `json:"uptime"` // seconds
	CPU       float64   `json:"cpu"`    // cores in use, by guests
	Memory    int64     `json:"memory"` // resident bytes of the node
	Sandboxes int64     `json:"sandbox_memory"`
	Cache     int64     `json:"code_cache"` // bytes of compiled code
	Rows      []TopRow  `json:"functions"`
	Nodes     []TopNode `json:"nodes,omitempty"`   // of several: each node
	Missing   []string  `json:"missing,omitempty"` // nodes that did not answer in time
}

// TopNode is one node in a Top of several.
type TopNode struct {
	Node      string  `json:"node"`
	Uptime    float64 `json:"uptime"` // seconds
	CPU       float64 `json:"cpu"`    // cores
	Memory    int64   `json:"memory"`
	Sandboxes int64   `json:"sandbox_memory"`
	Cache     int64   `json:"code_cache"`
	Rate      float64 `json:"per_second"`
	Errors    float64 `json:"errors_per_second"`
	Busy      int     `json:"busy"`
	Warm      int     `json:"warm"`
	Queued    int     `json:"queued"`
}

// TopRow is one function in Top; times over the last minute.
type TopRow struct {
	Name   lode.Name     `json:"name"`
	Rev    int           `json:"rev"`
	Rate   float64       `json:"per_second"`
	Errors float64       `json:"errors_per_second"`
	P50    time.Duration `json:"p50"`
	P99    time.Duration `json:"p99"`
	Busy   int           `json:"busy"`
	Warm   int           `json:"warm"`
	Queued int           `json:"queued"`
	CPU    float64       `json:"cpu"` // cores
	Memory int64         `json:"memory"`
	Nodes  []string      `json:"nodes,omitempty"` // where it has sandboxes or ran in the last minute
}

// Explanation says why something is where it is, or how a call went.
type Explanation struct {
	Ref        string            `json:"ref"`
	Kind       string            `json:"kind"`                 // function, agent, queue, dataset, call, job
	Summary    string            `json:"summary"`              // one line
	Steps      []Step            `json:"steps"`                // in order of time or of weight
	Candidates []Candidate       `json:"candidates,omitempty"` // of placement, the best first
	Call       *Call             `json:"call,omitempty"`
	Job        *Job              `json:"job,omitempty"`
	Logs       []LogLine         `json:"logs,omitempty"`
	Facts      map[string]string `json:"facts,omitempty"`
	Waits      []Wait            `json:"waits,omitempty"` // agents: who waits for whom
}

// Step is one reason or one thing that happened.
type Step struct {
	At   time.Time     `json:"at,omitzero"`
	Took time.Duration `json:"took,omitempty"`
	What string        `json:"what"`
	Why  string        `json:"why,omitempty"`
}

// Candidate is one node that placement weighed: what it would cost to run
// there, in parts that add up.
type Candidate struct {
	Node    string        `json:"node"`
	Hop     time.Duration `json:"hop"`  // there and back
	Wait    time.Duration `json:"wait"` // in its queue
	Data    time.Duration `json:"data"` // to bring what it lacks of the data
	Code    time.Duration `json:"code"` // to bring and to load the code
	Run     time.Duration `json:"run"`
	Chosen  bool          `json:"chosen,omitempty"`
	Refused string        `json:"refused,omitempty"` // why it could not, or would not
}

// Start is how long it takes until the work begins there.
func (c *Candidate) Start() time.Duration { return c.Hop + c.Wait + c.Data + c.Code }

// Total is how long it takes until the work has ended there.
func (c *Candidate) Total() time.Duration { return c.Start() + c.Run }

// Check is one line of the doctor.
type Check struct {
	Node   string `json:"node,omitempty"` // that found it; "": the cluster as a whole, or the only node
	Name   string `json:"name"`
	State  string `json:"state"`            // ok, warn, fail
	Detail string `json:"detail"`           // what was found
	Advice string `json:"advice,omitempty"` // what to do; never empty with warn and fail
}

// The states of a Check.
const (
	CheckOK   = "ok"
	CheckWarn = "warn"
	CheckFail = "fail"
)

// Version is what runs here.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	ABI     int    `json:"abi"`
	Node    string `json:"node,omitempty"`
	Data    string `json:"data,omitempty"` // the node's data folder
}
