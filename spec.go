package lode

import "time"

// App is what is declared: the resolved content of a lode.yaml, with every
// default filled in, every ${VAR} replaced and every source built into an
// artifact. It is what a deploy sends and what the catalog keeps. It never
// holds a secret's value.
type App struct {
	Name      Name              `json:"app"`
	Functions map[Name]Function `json:"functions,omitempty"`
	Agents    map[Name]Function `json:"agents,omitempty"` // kinds: Function.Agent is set
	Queues    map[Name]Queue    `json:"queues,omitempty"`
	Datasets  map[Name]Dataset  `json:"datasets,omitempty"`
	// Alias and Weight: where the new revisions go. Empty: the alias "live",
	// 100 percent.
	Alias  string `json:"alias,omitempty"`
	Weight int    `json:"weight,omitempty"`
}

// Function is the immutable half of a revision: code and config.
type Function struct {
	Artifact Digest   `json:"artifact"`           // the module, a blob; see Language
	Size     int64    `json:"size"`               // bytes of the artifact
	Language string   `json:"language,omitempty"` // go, js, ts, c, wasm
	Export   string   `json:"export,omitempty"`   // handler in a module with several; "": its only or default one
	Contract Contract `json:"contract"`           // how it is spoken to
	// Args are argv[1:] of a command.
	Args []string `json:"args,omitempty"`

	Routes    []string          `json:"routes,omitempty"` // ServeMux patterns
	Access    Access            `json:"access"`
	CORS      *CORS             `json:"cors,omitempty"`
	Schedules []Schedule        `json:"schedules,omitempty"`
	Queue     *Consume          `json:"queue,omitempty"`
	Retry     Retry             `json:"retry"`
	Reduce    string            `json:"reduce,omitempty"`
	OKExit    []int             `json:"ok_exit,omitempty"` // default 0 alone
	Reuse     bool              `json:"reuse,omitempty"`
	Env       map[string]string `json:"env,omitempty"`
	Secrets   []string          `json:"secrets,omitempty"` // names only
	Egress    Egress            `json:"egress"`
	Needs     []Name            `json:"needs,omitempty"`
	Limits    Limits            `json:"limits"`
	Exports   *Description      `json:"exports,omitempty"` // what the guest said of itself
	Agent     *AgentSpec        `json:"agent,omitempty"`   // nil: a function, else a kind of agents
}

// Contract is how the engine speaks to an artifact.
type Contract string

// The contracts.
const (
	ContractHandler Contract = "handler" // exports lode_invoke: the ABI of sdk/abi
	ContractCommand Contract = "command" // exports _start: body on stdin, answer on stdout, CGI variables
)

// Access is who may call a function's route.
type Access string

// The accesses.
const (
	AccessToken    Access = "token"
	AccessPublic   Access = "public"
	AccessInternal Access = "internal" // only other functions and triggers
)

// CORS is what the gateway answers to a browser of another origin.
type CORS struct {
	Origins []string      `json:"origins"` // "*" or origins
	Headers []string      `json:"headers,omitempty"`
	MaxAge  time.Duration `json:"max_age,omitempty"`
}

// Schedule is one cron entry: five fields, or "@every 10s".
type Schedule struct {
	Cron string `json:"cron"`
	Zone string `json:"zone,omitempty"` // IANA; "" = UTC
}

// Consume makes a function the consumer of a queue.
type Consume struct {
	Queue Name          `json:"queue"`
	Size  int           `json:"size"` // messages a batch, 10
	Wait  time.Duration `json:"wait"` // for a fuller batch, 0
}

// Retry is how asynchronous work is tried again.
type Retry struct {
	Attempts int           `json:"attempts"` // in all, 3
	First    time.Duration `json:"first"`    // 1 s; doubles
	Max      time.Duration `json:"max"`      // 5 min
	Dead     Name          `json:"dead,omitempty"`
}

// Egress says which addresses a function may reach. Private, link-local and
// metadata addresses are reached only if a host in Allow names them.
type Egress struct {
	Mode  string   `json:"mode"` // public, none, list
	Allow []string `json:"allow,omitempty"`
}

// Limits bound one sandbox and one function.
type Limits struct {
	Memory    int64         `json:"memory"`     // bytes, 256 MiB
	Start     time.Duration `json:"start"`      // 30 s
	Total     time.Duration `json:"total"`      // 60 s
	Idle      time.Duration `json:"idle"`       // 5 min
	ScaleMin  int           `json:"scale_min"`  // sandboxes kept warm
	ScaleMax  int           `json:"scale_max"`  // 0 = no limit
	Each      int           `json:"each"`       // invocations a sandbox at once, 1
	QueueMax  int           `json:"queue_max"`  // waiting invocations, 1,000
	Body      int64         `json:"body"`       // buffered body bytes, 6 MiB
	Tmp       int64         `json:"tmp"`        // bytes under /tmp, 512 MiB
	Log       int64         `json:"log"`        // bytes of log an invocation, 256 KiB
	CPU       float64       `json:"cpu"`        // cores, 1
	OutputMax int64         `json:"output_max"` // bytes of a buffered answer, 6 MiB; streamed: unlimited
}

// Queue is a durable, at-least-once queue.
type Queue struct {
	Keep    time.Duration `json:"keep"`    // 7 d
	Deliver int           `json:"deliver"` // attempts before the dead letter, 5
	Visible time.Duration `json:"visible"` // 30 s
	Max     int64         `json:"max"`     // messages, 1,000,000
}

// Dataset is the declared half of a dataset; its content is in manifests.
type Dataset struct {
	From    []string `json:"from,omitempty"`
	Records Records  `json:"records"`
	Shard   int64    `json:"shard"`  // target bytes, 32 MiB
	Copies  int      `json:"copies"` // 2
	Keep    int      `json:"keep"`   // versions, 10
}

// Description is what a guest's describe export says of itself: the words its
// code registered. JSON, at most 64 KiB.
type Description struct {
	SDK       string    `json:"sdk,omitempty"`       // "go 1", "js 1", "c 1"
	ABI       int       `json:"abi"`                 // 1
	Functions []Export  `json:"functions,omitempty"` // handlers; "" is the default one
	Jobs      []Export  `json:"jobs,omitempty"`      // map and merge pairs
	Kinds     []KindExp `json:"kinds,omitempty"`     // agent kinds
}

// Export is one handler.
type Export struct {
	Name     string   `json:"name"`
	Triggers []string `json:"triggers,omitempty"` // http, call, schedule, queue
	Reduce   string   `json:"reduce,omitempty"`   // jobs: "guest" if it brings its own merge
}

// KindExp is one agent kind: its methods, and which of them only read.
type KindExp struct {
	Name    string   `json:"name"`
	Methods []string `json:"methods"`
	Read    []string `json:"read,omitempty"`
	Fetch   bool     `json:"fetch,omitempty"`   // it answers HTTP requests
	Socket  bool     `json:"socket,omitempty"`  // it takes WebSockets
	Migrate bool     `json:"migrate,omitempty"` // it wants to know of new revisions
}

// Revision is one immutable step in a function's history.
type Revision struct {
	Namespace Namespace `json:"namespace"`
	App       Name      `json:"app"`
	Name      Name      `json:"name"`
	Number    int       `json:"rev"`    // 1, 2, 3 ...
	Digest    Digest    `json:"digest"` // of the canonical JSON of Function
	Created   time.Time `json:"created"`
	Function  Function  `json:"function"`
}

// ID is "namespace/name@number".
func (r *Revision) ID() string {
	return string(r.Namespace) + "/" + string(r.Name) + "@" + itoa(r.Number)
}

// Alias maps a word to revisions by weight. "live" is the one that calls
// without an alias use.
type Alias struct {
	Name    string   `json:"name"`
	Targets []Target `json:"targets"` // weights add up to 100
}

// Target is one side of a weighted alias.
type Target struct {
	Rev    int `json:"rev"`
	Weight int `json:"weight"`
}

// LiveAlias is the alias of a call that names none.
const LiveAlias = "live"
