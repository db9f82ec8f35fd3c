package api

import (
	"context"
	"io"
	"time"

	"lode"
)

// Backend is what stands behind /v1: one small interface a noun. A nil noun
// answers unavailable.
//
// Every method may be called from many goroutines at once. Namespaces are
// never empty and the caller's grant was checked against them before; it can
// be asked for with GrantOf. Errors are *lode.Error where the caller is to
// blame or can do something; any other error leaves as internal. A write that
// returned nil is durable. Lists come in a fixed order, and Page.After is the
// last key of the page before.
type Backend struct {
	Apps     Apps
	Agents   Agents // nil: this node has no agents
	Blobs    Blobs
	Calls    Calls
	Queues   Queues
	Datasets Datasets
	Jobs     Jobs
	Secrets  Secrets
	Tokens   Tokens
	Logs     Logs
	Cluster  Cluster
	Nodes    Nodes // nil: the list is Cluster's, and nothing else is there
	Audit    Audit // nil: writes are not audited
}

// Page asks for a part of a list.
type Page struct {
	Limit int    // items at most; the server sees to 1..1,000, default 100
	After string // Next of the page before; "" begins
}

// List is one page. Items is never nil on the wire.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"` // the After of the next page; "": this was the last
	// Missing are nodes that did not answer, where each knows its own part:
	// what only they know is not in Items.
	Missing []string `json:"missing,omitempty"`
}

// Apps is what is deployed: apps, the names they own, functions with their
// history and aliases.
type Apps interface {
	// Deploy makes the app what is declared. The whole app changes or nothing
	// does. It is idempotent: the same app again makes no revision. Artifacts
	// that are not there are reported in Plan.Missing when o.Plan is set, and
	// are a Precondition error else. A name owned by another app is a
	// Conflict.
	Deploy(ctx context.Context, ns lode.Namespace, app lode.App, o DeployOptions) (Plan, error)
	// ListApps is ordered by name.
	ListApps(ctx context.Context, ns lode.Namespace, p Page) (List[App], error)
	// GetApp is NotFound for an unknown app.
	GetApp(ctx context.Context, ns lode.Namespace, app lode.Name) (App, error)
	// RemoveApp removes all names of an app; see RemoveName.
	RemoveApp(ctx context.Context, ns lode.Namespace, app lode.Name, o RemoveOptions) (Removed, error)

	// ListNames lists the names of one kind, or of all ("").
	ListNames(ctx context.Context, ns lode.Namespace, kind ItemKind, p Page) (List[Item], error)
	// GetName tells everything about a name; NotFound carries a suggestion.
	GetName(ctx context.Context, ns lode.Namespace, name lode.Name) (Detail, error)
	// RemoveName takes a name out of service. State and history are kept for
	// seven days, unless o.Data is set.
	RemoveName(ctx context.Context, ns lode.Namespace, name lode.Name, o RemoveOptions) (Removed, error)
	// UndoRemove brings a removed name, or all of a removed app, back.
	UndoRemove(ctx context.Context, ns lode.Namespace, name lode.Name) (Removed, error)

	// History lists revisions, newest first.
	History(ctx context.Context, ns lode.Namespace, fn lode.Name, p Page) (List[lode.Revision], error)
	// Rollback makes revision rev the target of "live"; 0 is the one before
	// the present target. ifMatch as in DeployOptions.
	Rollback(ctx context.Context, ns lode.Namespace, fn lode.Name, rev int, ifMatch string) (Function, error)
	// SetAlias sets an alias; weights add up to 100. No targets removes it.
	SetAlias(ctx context.Context, ns lode.Namespace, fn lode.Name, a lode.Alias, ifMatch string) (Function, error)
}

// Blobs holds artifacts on their way in.
type Blobs interface {
	// HasBlob reports whether the bytes of d are there, durably.
	HasBlob(ctx context.Context, ns lode.Namespace, d lode.Digest) (bool, error)
	// PutBlob stores r under d; Damaged if the bytes do not have that digest,
	// and then nothing is kept. size is -1 if it is not known.
	PutBlob(ctx context.Context, ns lode.Namespace, d lode.Digest, size int64, r io.Reader) error
	// DescribeBlob compiles the module d, if that was not done before, and
	// tells what it says of itself. NotFound if d is not there, Invalid for
	// what is no module or a broken one. A deploy of d compiles nothing again.
	DescribeBlob(ctx context.Context, ns lode.Namespace, d lode.Digest) (Module, error)
}

// Calls is asynchronous work: queued, running, done, failed, dead.
type Calls interface {
	// ListCalls is ordered by id, newest first.
	ListCalls(ctx context.Context, ns lode.Namespace, f CallFilter, p Page) (List[Call], error)
	// GetCall waits up to wait for the call's end before it answers; 0 answers
	// at once. Waiting is over when ctx is.
	GetCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID, wait time.Duration) (Call, error)
	// CancelCall is idempotent; it is a Conflict for a call that has ended.
	CancelCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error)
	// ReplayCall queues a failed or dead call again, under the same id.
	ReplayCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error)
	// CallResult is the answer of a call that is done. The caller closes
	// Content.Body. NotFound before the end, Gone after retention.
	CallResult(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Content, error)
}

// Queues are declared queues and their depth.
type Queues interface {
	ListQueues(ctx context.Context, ns lode.Namespace, p Page) (List[Queue], error)
	GetQueue(ctx context.Context, ns lode.Namespace, name lode.Name) (Queue, error)
}

// Datasets are datasets and their versions.
type Datasets interface {
	ListDatasets(ctx context.Context, ns lode.Namespace, p Page) (List[Dataset], error)
	// GetDataset describes a version; 0 is the newest.
	GetDataset(ctx context.Context, ns lode.Namespace, name lode.Name, version int) (Dataset, error)
	// GetManifest is the manifest of a version; 0 is the newest.
	GetManifest(ctx context.Context, ns lode.Namespace, name lode.Name, version int) (lode.Manifest, error)
	// PutDataset reads all files and commits them as one new version, or
	// nothing. It makes the dataset if need be. An error of files.Next other
	// than io.EOF is an upload cut short: nothing is visible of it.
	PutDataset(ctx context.Context, ns lode.Namespace, name lode.Name, o PutOptions, files Files) (Dataset, error)
	// ReadDataset writes the bytes of a version in order: the CSV header, then
	// the shards. With o.Shard it writes that shard alone, without a header.
	ReadDataset(ctx context.Context, ns lode.Namespace, name lode.Name, o ReadOptions, w io.Writer) error
	// ReadFiles emits the files of a version in order. A dataset that is not
	// of records "files" is one file of the dataset's name. r is valid until
	// emit returns; emit's error ends the walk and is returned.
	ReadFiles(ctx context.Context, ns lode.Namespace, name lode.Name, version int, emit func(name string, size int64, r io.Reader) error) error
	// RemoveVersion drops one old version; the newest is a Conflict.
	// Whole datasets are removed by Apps.RemoveName.
	RemoveVersion(ctx context.Context, ns lode.Namespace, name lode.Name, version int) error
	// CollectDatasets drops versions beyond keep and bytes that nothing names.
	CollectDatasets(ctx context.Context, ns lode.Namespace) (Collected, error)
}

// Files yields the files of an upload, in order. Next returns io.EOF behind
// the last one. The reader of one file is valid until the next call of Next;
// size is -1 if it is not known.
type Files interface {
	Next() (name string, size int64, r io.Reader, err error)
}

// Jobs run a function over the shards of a dataset.
type Jobs interface {
	// CreateJob is durable before it returns; the job may already be over.
	CreateJob(ctx context.Context, ns lode.Namespace, s JobSpec) (Job, error)
	// ListJobs is ordered by id, newest first.
	ListJobs(ctx context.Context, ns lode.Namespace, p Page) (List[Job], error)
	// GetJob waits up to wait for the job's end; as Calls.GetCall.
	GetJob(ctx context.Context, ns lode.Namespace, id string, wait time.Duration) (Job, error)
	// WatchJob calls see with the job's state now, at each change (at most
	// some ten times a second), and at its end, and then returns nil.
	WatchJob(ctx context.Context, ns lode.Namespace, id string, see func(Job) error) error
	// CancelJob is idempotent; a Conflict for a job that has ended.
	CancelJob(ctx context.Context, ns lode.Namespace, id string) (Job, error)
	// JobResult is the merged result of a job that is done.
	JobResult(ctx context.Context, ns lode.Namespace, id string) (Content, error)
}

// Secrets take values in and never give them out.
type Secrets interface {
	SetSecret(ctx context.Context, ns lode.Namespace, name string, value []byte) error
	ListSecrets(ctx context.Context, ns lode.Namespace, p Page) (List[Secret], error)
	RemoveSecret(ctx context.Context, ns lode.Namespace, name string) error
}

// Tokens are what callers prove themselves with. Only hashes are kept; see
// MintToken.
type Tokens interface {
	// Authenticate finds the grant of a token as it was sent. Unauthenticated
	// for an unknown, revoked or expired one.
	Authenticate(ctx context.Context, token string) (Grant, error)
	// CreateToken returns the only copy of the token.
	CreateToken(ctx context.Context, s TokenSpec) (NewToken, error)
	ListTokens(ctx context.Context, p Page) (List[Token], error)
	// RevokeToken takes the id; idempotent for a revoked one.
	RevokeToken(ctx context.Context, id string) error
}

// Logs are what functions, jobs and the node said.
type Logs interface {
	// ReadLogs calls see for each line, oldest first. With f.Follow it goes on
	// until ctx is over, and then returns nil. An error of see ends it.
	ReadLogs(ctx context.Context, ns lode.Namespace, f LogFilter, see func(LogLine) error) error
}

// Cluster is what can be seen of the machines and of the work on them.
type Cluster interface {
	Top(ctx context.Context, ns lode.Namespace) (Top, error)
	// Explain takes a name, an invocation id, a job id, or the first eight or
	// more digits of a trace.
	Explain(ctx context.Context, ns lode.Namespace, ref string) (Explanation, error)
	// Nodes lists nodes where Backend.Nodes is nil.
	Nodes(ctx context.Context) (List[Node], error)
	// Doctor is what the node finds out about its own machine.
	Doctor(ctx context.Context) (List[Check], error)
	Version(ctx context.Context) (Version, error)
}

// Audit keeps who changed what.
type Audit interface {
	// RecordAudit is called after each write, whatever its end was.
	RecordAudit(ctx context.Context, e AuditEntry) error
	// ListAudit is newest first.
	ListAudit(ctx context.Context, p Page) (List[AuditEntry], error)
}
