package api_test

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"lode"
	"lode/api"
)

// memory is a whole backend in memory: what the tests of handler and client
// speak to.
type memory struct {
	mu       sync.Mutex
	apps     map[lode.Name]*api.App
	blobs    map[lode.Digest][]byte
	files    map[lode.Name][]file
	secrets  map[string][]byte
	tokens   map[string]kept
	jobs     map[string]*api.Job
	lines    []api.LogLine
	audit    []api.AuditEntry
	namesFor []lode.Namespace // that were asked
	breakAt  int              // bytes after which reading a dataset fails; 0: never
	answer   string           // of calls and jobs
}

type file struct {
	name string
	body []byte
}

type kept struct {
	api.Token
	hash string
}

func newMemory() *memory {
	return &memory{apps: map[lode.Name]*api.App{}, blobs: map[lode.Digest][]byte{}, files: map[lode.Name][]file{}, secrets: map[string][]byte{},
		tokens: map[string]kept{}, jobs: map[string]*api.Job{}}
}

func (m *memory) backend() api.Backend {
	return api.Backend{Apps: m, Blobs: m, Calls: m, Datasets: m, Jobs: m, Secrets: m, Tokens: m, Logs: m, Cluster: m, Audit: m} // no queues
}

func (m *memory) lock() func() { m.mu.Lock(); return m.mu.Unlock }

func (m *memory) Deploy(_ context.Context, ns lode.Namespace, app lode.App, o api.DeployOptions) (api.Plan, error) {
	defer m.lock()()
	m.namesFor = append(m.namesFor, ns)
	old := m.apps[app.Name]
	etag := ""
	if old != nil {
		etag = old.ETag
	}
	if o.IfMatch != "" && o.IfMatch != etag {
		return api.Plan{}, lode.Errorf(lode.Precondition, "the app is at %q", etag)
	}
	p := api.Plan{App: app.Name, Applied: !o.Plan, ETag: etag}
	for n, f := range app.Functions {
		p.Changes = append(p.Changes, api.Change{Op: api.OpAdd, Kind: api.KindFunction, Name: n, Rev: 1})
		if m.blobs[f.Artifact] == nil && !f.Artifact.IsZero() {
			p.Missing = append(p.Missing, f.Artifact)
		}
	}
	if !o.Plan {
		n, _ := strconv.Atoi(etag)
		p.ETag = strconv.Itoa(n + 1)
		m.apps[app.Name] = &api.App{Name: app.Name, ETag: p.ETag, Spec: &app}
	}
	return p, nil
}

func (m *memory) ListApps(_ context.Context, _ lode.Namespace, p api.Page) (api.List[api.App], error) {
	defer m.lock()()
	var names []string
	for n := range m.apps {
		if string(n) > p.After {
			names = append(names, string(n))
		}
	}
	slices.Sort(names)
	var l api.List[api.App]
	for _, n := range names {
		if len(l.Items) == p.Limit {
			l.Next = string(l.Items[len(l.Items)-1].Name)
			break
		}
		l.Items = append(l.Items, *m.apps[lode.Name(n)])
	}
	return l, nil
}

func (m *memory) GetApp(_ context.Context, _ lode.Namespace, n lode.Name) (api.App, error) {
	defer m.lock()()
	if a := m.apps[n]; a != nil {
		return *a, nil
	}
	return api.App{}, lode.Errorf(lode.NotFound, "no app %s", n).WithHint("did you mean %q?", "shop")
}

func (m *memory) RemoveApp(_ context.Context, _ lode.Namespace, n lode.Name, _ api.RemoveOptions) (api.Removed, error) {
	defer m.lock()()
	delete(m.apps, n)
	return api.Removed{Items: []api.Item{{Name: n}}}, nil
}

func (m *memory) ListNames(context.Context, lode.Namespace, api.ItemKind, api.Page) (api.List[api.Item], error) {
	return api.List[api.Item]{}, nil
}

func (m *memory) GetName(_ context.Context, _ lode.Namespace, n lode.Name) (api.Detail, error) {
	d := api.Detail{Item: api.Item{Name: n, Kind: api.KindQueue}}
	if n == "fn" {
		d.Kind, d.Function = api.KindFunction, &api.Function{Name: n, ETag: "7"}
	}
	return d, nil
}

func (m *memory) RemoveName(_ context.Context, _ lode.Namespace, n lode.Name, o api.RemoveOptions) (api.Removed, error) {
	return api.Removed{Items: []api.Item{{Name: n, Detail: strconv.FormatBool(o.Data)}}}, nil
}

func (m *memory) UndoRemove(_ context.Context, _ lode.Namespace, n lode.Name) (api.Removed, error) {
	return api.Removed{Items: []api.Item{{Name: n}}}, nil
}

func (m *memory) History(context.Context, lode.Namespace, lode.Name, api.Page) (api.List[lode.Revision], error) {
	return api.List[lode.Revision]{Items: []lode.Revision{{Number: 2}, {Number: 1}}}, nil
}

func (m *memory) Rollback(_ context.Context, _ lode.Namespace, n lode.Name, rev int, tag string) (api.Function, error) {
	return api.Function{Name: n, ETag: tag, Live: lode.Revision{Number: rev}}, nil
}

func (m *memory) SetAlias(_ context.Context, _ lode.Namespace, n lode.Name, a lode.Alias, _ string) (api.Function, error) {
	f := api.Function{Name: n}
	if len(a.Targets) > 0 {
		f.Aliases = []lode.Alias{a}
	}
	return f, nil
}

func (m *memory) HasBlob(_ context.Context, _ lode.Namespace, d lode.Digest) (bool, error) {
	defer m.lock()()
	return m.blobs[d] != nil, nil
}

func (m *memory) PutBlob(_ context.Context, _ lode.Namespace, d lode.Digest, size int64, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if int64(len(b)) != size {
		return lode.Errorf(lode.Internal, "size %d, body %d", size, len(b))
	}
	if len(b) > 0 && b[0] != d[0] { // stands for the digest's check
		return lode.Errorf(lode.Damaged, "the bytes do not have the digest %s", d.Short())
	}
	defer m.lock()()
	m.blobs[d] = b
	return nil
}

func (m *memory) DescribeBlob(context.Context, lode.Namespace, lode.Digest) (api.Module, error) {
	return api.Module{Contract: lode.ContractHandler, Description: &lode.Description{ABI: 1}}, nil
}

func (m *memory) ListCalls(_ context.Context, _ lode.Namespace, f api.CallFilter, _ api.Page) (api.List[api.Call], error) {
	return api.List[api.Call]{Items: []api.Call{{Function: f.Function, State: f.State, Dead: f.Dead}}}, nil
}

func (m *memory) GetCall(_ context.Context, _ lode.Namespace, id lode.InvocationID, wait time.Duration) (api.Call, error) {
	return api.Call{ID: id, State: lode.StateDone, Attempts: int(wait / time.Second), Error: lode.Errorf(lode.Crashed, "boom")}, nil
}

func (m *memory) CancelCall(_ context.Context, _ lode.Namespace, id lode.InvocationID) (api.Call, error) {
	return api.Call{ID: id, State: lode.StateCancelled}, nil
}

func (m *memory) ReplayCall(_ context.Context, _ lode.Namespace, id lode.InvocationID) (api.Call, error) {
	return api.Call{ID: id, State: lode.StateQueued}, nil
}

func (m *memory) CallResult(context.Context, lode.Namespace, lode.InvocationID) (api.Content, error) {
	return api.Content{Status: 418, Type: "text/plain", Size: int64(len(m.answer)), Body: io.NopCloser(bytes.NewReader([]byte(m.answer)))}, nil
}

func (m *memory) ListDatasets(context.Context, lode.Namespace, api.Page) (api.List[api.Dataset], error) {
	return api.List[api.Dataset]{}, nil
}

func (m *memory) GetDataset(_ context.Context, _ lode.Namespace, n lode.Name, v int) (api.Dataset, error) {
	defer m.lock()()
	if m.files[n] == nil {
		return api.Dataset{}, lode.Errorf(lode.NotFound, "no dataset %s", n)
	}
	return api.Dataset{Name: n, Version: max(v, 1), ETag: "v1", Count: int64(len(m.files[n]))}, nil
}

func (m *memory) GetManifest(_ context.Context, ns lode.Namespace, n lode.Name, v int) (lode.Manifest, error) {
	return lode.Manifest{Namespace: ns, Name: n, Version: v}, nil
}

func (m *memory) PutDataset(_ context.Context, _ lode.Namespace, n lode.Name, o api.PutOptions, files api.Files) (api.Dataset, error) {
	var all []file
	for {
		name, size, r, err := files.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return api.Dataset{}, err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return api.Dataset{}, err
		}
		if size >= 0 && int64(len(b)) != size {
			return api.Dataset{}, io.ErrUnexpectedEOF
		}
		all = append(all, file{name, b})
	}
	defer m.lock()()
	if o.Append {
		all = append(slices.Clone(m.files[n]), all...)
	}
	m.files[n] = all
	return api.Dataset{Name: n, Version: 1, Records: o.Records, Count: int64(len(all))}, nil
}

func (m *memory) ReadDataset(_ context.Context, _ lode.Namespace, n lode.Name, o api.ReadOptions, w io.Writer) error {
	defer m.lock()()
	written := 0
	for i, f := range m.files[n] {
		if o.Shard > 0 && o.Shard != i+1 {
			continue
		}
		if m.breakAt > 0 && written >= m.breakAt {
			return lode.Errorf(lode.Damaged, "shard %d does not match its checksum", i+1)
		}
		k, err := w.Write(f.body)
		if err != nil {
			return err
		}
		written += k
	}
	if m.files[n] == nil {
		return lode.Errorf(lode.NotFound, "no dataset %s", n)
	}
	return nil
}

func (m *memory) ReadFiles(_ context.Context, _ lode.Namespace, n lode.Name, _ int, emit func(string, int64, io.Reader) error) error {
	defer m.lock()()
	for _, f := range m.files[n] {
		if err := emit(f.name, int64(len(f.body)), bytes.NewReader(f.body)); err != nil {
			return err
		}
		if m.breakAt > 0 {
			return lode.Errorf(lode.Damaged, "the shard behind %s does not match its checksum", f.name)
		}
	}
	return nil
}

func (m *memory) RemoveVersion(context.Context, lode.Namespace, lode.Name, int) error { return nil }

func (m *memory) CollectDatasets(context.Context, lode.Namespace) (api.Collected, error) {
	return api.Collected{Bytes: 3}, nil
}

func (m *memory) CreateJob(_ context.Context, _ lode.Namespace, s api.JobSpec) (api.Job, error) {
	defer m.lock()()
	j := &api.Job{ID: "j-7Q2", State: lode.StateRunning, Function: string(s.Function), Dataset: s.Dataset, Shards: 3}
	m.jobs[j.ID] = j
	return *j, nil
}

func (m *memory) ListJobs(context.Context, lode.Namespace, api.Page) (api.List[api.Job], error) {
	return api.List[api.Job]{}, nil
}

func (m *memory) GetJob(_ context.Context, _ lode.Namespace, id string, _ time.Duration) (api.Job, error) {
	defer m.lock()()
	if j := m.jobs[id]; j != nil {
		return *j, nil
	}
	return api.Job{}, lode.Errorf(lode.NotFound, "no job %s", id)
}

// WatchJob goes through three shards and then ends, or breaks off.
func (m *memory) WatchJob(ctx context.Context, _ lode.Namespace, id string, see func(api.Job) error) error {
	j, err := m.GetJob(ctx, "", id, 0)
	if err != nil {
		return err
	}
	for j.Done = 0; j.Done < 3; j.Done++ {
		if err := see(j); err != nil {
			return err
		}
		if m.breakAt > 0 {
			return lode.Errorf(lode.Unavailable, "the node stops")
		}
	}
	j.State = lode.StateDone
	return see(j)
}

func (m *memory) CancelJob(_ context.Context, _ lode.Namespace, id string) (api.Job, error) {
	return api.Job{ID: id, State: lode.StateCancelled}, nil
}

func (m *memory) JobResult(context.Context, lode.Namespace, string) (api.Content, error) {
	return api.Content{Size: -1, Body: io.NopCloser(bytes.NewReader([]byte(m.answer)))}, nil
}

func (m *memory) SetSecret(_ context.Context, _ lode.Namespace, n string, v []byte) error {
	defer m.lock()()
	m.secrets[n] = v
	return nil
}

func (m *memory) ListSecrets(context.Context, lode.Namespace, api.Page) (api.List[api.Secret], error) {
	defer m.lock()()
	var l api.List[api.Secret]
	for n := range m.secrets {
		l.Items = append(l.Items, api.Secret{Name: n})
	}
	return l, nil
}

func (m *memory) RemoveSecret(_ context.Context, _ lode.Namespace, n string) error {
	defer m.lock()()
	delete(m.secrets, n)
	return nil
}

func (m *memory) Authenticate(_ context.Context, token string) (api.Grant, error) {
	defer m.lock()()
	id, ok := api.TokenID(token)
	k, known := m.tokens[id]
	if !ok || !known || !api.TokenMatches(token, k.hash) {
		return api.Grant{}, lode.Errorf(lode.Unauthenticated, "this token is not known here")
	}
	return api.Grant{Token: id, Role: k.Role, Namespace: k.Namespace}, nil
}

func (m *memory) CreateToken(_ context.Context, s api.TokenSpec) (api.NewToken, error) {
	defer m.lock()()
	id, token := api.MintToken()
	t := api.Token{ID: id, Role: s.Role, Namespace: s.Namespace, Note: s.Note, Created: time.Now()}
	if s.For > 0 {
		t.Expires = t.Created.Add(s.For)
	}
	m.tokens[id] = kept{t, api.HashToken(token)}
	return api.NewToken{Token: t, Secret: token}, nil
}

func (m *memory) ListTokens(context.Context, api.Page) (api.List[api.Token], error) {
	defer m.lock()()
	var l api.List[api.Token]
	for _, k := range m.tokens {
		l.Items = append(l.Items, k.Token)
	}
	return l, nil
}

func (m *memory) RevokeToken(_ context.Context, id string) error {
	defer m.lock()()
	delete(m.tokens, id)
	return nil
}

func (m *memory) ReadLogs(ctx context.Context, _ lode.Namespace, f api.LogFilter, see func(api.LogLine) error) error {
	for _, l := range m.lines {
		if f.Name != "" && l.Name != f.Name {
			continue
		}
		if err := see(l); err != nil {
			return err
		}
	}
	if m.breakAt > 0 {
		return lode.Errorf(lode.Damaged, "a segment of the log is damaged")
	}
	if f.Follow {
		<-ctx.Done()
	}
	return nil
}

func (m *memory) Top(context.Context, lode.Namespace) (api.Top, error) {
	return api.Top{Node: "n"}, nil
}

func (m *memory) Explain(_ context.Context, _ lode.Namespace, ref string) (api.Explanation, error) {
	return api.Explanation{Ref: ref}, nil
}

func (m *memory) Nodes(context.Context) (api.List[api.Node], error) {
	return api.List[api.Node]{Items: []api.Node{{Name: "n"}}}, nil
}

func (m *memory) Doctor(context.Context) (api.List[api.Check], error) {
	return api.List[api.Check]{}, io.ErrClosedPipe // an error of no kind
}

func (m *memory) Version(context.Context) (api.Version, error) { return api.Version{Version: "0"}, nil }

func (m *memory) RecordAudit(_ context.Context, e api.AuditEntry) error {
	defer m.lock()()
	m.audit = append(m.audit, e)
	return nil
}

func (m *memory) ListAudit(context.Context, api.Page) (api.List[api.AuditEntry], error) {
	defer m.lock()()
	return api.List[api.AuditEntry]{Items: slices.Clone(m.audit)}, nil
}
