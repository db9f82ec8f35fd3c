package api

import (
	"io"
	"time"

	"lode"
)

// DeployOptions go with a deploy.
type DeployOptions struct {
	Plan    bool   // change nothing, tell what would change
	Prune   bool   // remove what the app owns and no longer declares
	IfMatch string // ETag of the app that the caller saw, without quotes; "" = whatever; "*" = it must exist
}

// Op is what a deploy does to one name.
type Op string

// The operations.
const (
	OpAdd    Op = "+"
	OpChange Op = "~"
	OpRemove Op = "-"
	OpKeep   Op = "="
)

// Plan is what a deploy changes, or would change.
type Plan struct {
	App     lode.Name     `json:"app"`
	Applied bool          `json:"applied"`        // false for a plan
	ETag    string        `json:"etag,omitempty"` // of the app as it is now; of a plan: what to pass as IfMatch
	Changes []Change      `json:"changes"`
	Missing []lode.Digest `json:"missing,omitempty"` // artifacts to upload first
}

// Change is one line of a plan.
type Change struct {
	Op     Op        `json:"op"`
	Kind   ItemKind  `json:"kind"`
	Name   lode.Name `json:"name"`
	Rev    int       `json:"rev,omitempty"`    // the revision that is live afterwards
	Detail string    `json:"detail,omitempty"` // "go, wasm, 2.3 MB"; for ~ what differs
	Size   int64     `json:"size,omitempty"`   // bytes of the artifact
	URLs   []string  `json:"urls,omitempty"`   // /fn/N first, then routes
	Hint   string    `json:"hint,omitempty"`   // "no longer declared; --prune removes it"
}

// ItemKind is the kind of thing that a name names.
type ItemKind string

// The kinds.
const (
	KindFunction ItemKind = "function"
	KindAgent    ItemKind = "agent" // a kind of agents
	KindQueue    ItemKind = "queue"
	KindDataset  ItemKind = "dataset"
)

// Kinds lists the kinds of names, in the order of listings.
func Kinds() []ItemKind { return []ItemKind{KindFunction, KindAgent, KindQueue, KindDataset} }

// App is one deployed app.
type App struct {
	Name     lode.Name `json:"app"`
	ETag     string    `json:"etag"`
	Deployed time.Time `json:"deployed"`
	By       string    `json:"by,omitempty"` // token id
	Items    []Item    `json:"items"`
	Spec     *lode.App `json:"spec,omitempty"` // as declared; only in GetApp
}

// Item is one name, as in a listing.
type Item struct {
	Name    lode.Name `json:"name"`
	Kind    ItemKind  `json:"kind"`
	App     lode.Name `json:"app,omitempty"`
	Rev     int       `json:"rev,omitempty"`   // functions: live revision; datasets: newest version
	Where   []string  `json:"where,omitempty"` // node names
	Created time.Time `json:"created"`
	Last    time.Time `json:"last,omitzero"`       // of the last call
	Calls   float64   `json:"calls_per_minute"`    // over the last minute
	Detail  string    `json:"detail,omitempty"`    // one line, as Change.Detail
	URLs    []string  `json:"urls,omitempty"`      // as Change.URLs
	Removed time.Time `json:"removed,omitzero"`    // set: undo brings it back
	Until   time.Time `json:"kept_until,omitzero"` // of what was removed
}

// Detail is everything about one name. The field of its kind is set.
type Detail struct {
	Item
	Function *Function `json:"function,omitempty"` // of a kind of agents too
	Queue    *Queue    `json:"queue,omitempty"`
	Dataset  *Dataset  `json:"dataset,omitempty"`
}

// Function is a function, or a kind of agents, with its live revision and
// aliases.
type Function struct {
	Name     lode.Name     `json:"name"`
	App      lode.Name     `json:"app"`
	ETag     string        `json:"etag"`
	Live     lode.Revision `json:"live"`
	Aliases  []lode.Alias  `json:"aliases"`
	URLs     []string      `json:"urls,omitempty"`
	Sandbox  SandboxCount  `json:"sandboxes"`
	Unset    []string      `json:"secrets_unset,omitempty"` // declared, but no value is set
	Previous int           `json:"previous,omitempty"`      // the revision that a rollback goes to
}

// SandboxCount is how many sandboxes there are, by state.
type SandboxCount struct {
	Warm int `json:"warm"`
	Busy int `json:"busy"`
}

// RemoveOptions go with a removal.
type RemoveOptions struct {
	Data    bool   // remove state and data as well, for ever
	IfMatch string // as in DeployOptions
}

// Removed is what a removal took, or what an undo brought back.
type Removed struct {
	Items []Item    `json:"items"`
	Until time.Time `json:"kept_until,omitzero"` // undo works until then; zero: it does not
}

// Module is what a node finds in an artifact.
type Module struct {
	Contract    lode.Contract     `json:"contract"`
	Description *lode.Description `json:"description,omitempty"` // nil: a command, or it does not say
}

// CallFilter picks calls. Zero fields pick all.
type CallFilter struct {
	Function lode.Name
	State    lode.State
	Dead     bool // only dead letters: failed, and not to be tried again
}

// Call is one asynchronous invocation.
type Call struct {
	ID        lode.InvocationID `json:"id"`
	Function  lode.Name         `json:"function"`
	Revision  string            `json:"revision,omitempty"` // ns/name@rev
	Trigger   lode.Trigger      `json:"trigger"`
	State     lode.State        `json:"state"`
	Dead      bool              `json:"dead,omitempty"`
	Attempts  int               `json:"attempts"`
	Created   time.Time         `json:"created"`
	Ended     time.Time         `json:"ended,omitzero"`
	Next      time.Time         `json:"next,omitzero"`   // of the next attempt
	Node      string            `json:"node,omitempty"`  // of the last attempt
	Status    int               `json:"status,omitzero"` // the function's own, when done
	ResultLen int64             `json:"result_bytes,omitempty"`
	Trace     string            `json:"trace,omitempty"`
	Usage     *lode.Usage       `json:"usage,omitempty"` // of the last attempt
	Error     *lode.Error       `json:"error,omitempty"` // of the last attempt
}

// Content is a body with its head. Whoever gets it closes Body.
type Content struct {
	Status int    // a function's own status; 0 = 200
	Type   string // Content-Type; "" = application/octet-stream
	Size   int64  // -1: not known
	Body   io.ReadCloser
}

// Queue is a queue and how full it is.
type Queue struct {
	Name      lode.Name     `json:"name"`
	App       lode.Name     `json:"app,omitempty"`
	Spec      lode.Queue    `json:"spec"`
	Depth     int64         `json:"depth"`            // messages waiting
	InFlight  int64         `json:"in_flight"`        // handed out, not yet acknowledged
	Dead      int64         `json:"dead"`             // given up
	Oldest    time.Duration `json:"oldest,omitempty"` // age of the oldest waiting one
	Consumers []lode.Name   `json:"consumers,omitempty"`
}

// Dataset describes one version of a dataset.
type Dataset struct {
	Name     lode.Name     `json:"name"`
	App      lode.Name     `json:"app,omitempty"`
	ETag     string        `json:"etag"`
	Version  int           `json:"version"` // 0: declared, and nothing put yet
	Created  time.Time     `json:"created"`
	Records  lode.Records  `json:"records"`
	Shards   int           `json:"shards"`
	Bytes    int64         `json:"bytes"`
	Count    int64         `json:"count"` // records
	Spec     *lode.Dataset `json:"spec,omitempty"`
	Versions []int         `json:"versions,omitempty"` // kept ones, newest first
}

// PutOptions go with an upload. Zero fields: as declared, else the default.
type PutOptions struct {
	Records lode.Records
	Shard   int64 // target bytes of a shard
	Copies  int
	Append  bool   // the new version holds the old one's shards first
	IfMatch string // as in DeployOptions
}

// ReadOptions say what to read.
type ReadOptions struct {
	Version int // 0: the newest
	Shard   int // 1 is the first; 0: all
}

// Collected is what a collection freed.
type Collected struct {
	Versions int   `json:"versions"`
	Blobs    int   `json:"blobs"`
	Bytes    int64 `json:"bytes"`
}

// Secret is the outside of a secret.
type Secret struct {
	Name    string      `json:"name"`
	Updated time.Time   `json:"updated"`
	UsedBy  []lode.Name `json:"used_by,omitempty"`
}

// AuditEntry is one write at this door.
type AuditEntry struct {
	At        time.Time      `json:"at"`
	Token     string         `json:"token"` // id, or "socket"
	Role      Role           `json:"role"`
	Namespace lode.Namespace `json:"namespace"`
	Action    string         `json:"action"` // operation id of the route: "apps.deploy"
	Target    string         `json:"target"` // path
	Status    int            `json:"status"`
	Kind      lode.Kind      `json:"kind,omitempty"` // of the error
	From      string         `json:"from,omitempty"` // remote address
}
