package invoke

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"lode"
)

// How asynchronous work is kept. An invocation is an item of the queue
// "call/NS/FUNCTION" until it ends: its id is the invocation's, its body
//
//	u32 n      little-endian, length of the JSON
//	JSON       a work
//	body       the request's body; empty where work.Chunks > 0
//
// When it ends, its record is written to the table "calls" under "NS/ID" (the
// JSON of a record), and only then is the item acknowledged. What is longer
// than inlineBytes is in the table "bodies" instead, in chunks of chunkBytes,
// under "NS/ID/q/I" (the request) and "NS/ID/aC.N.PART/I" (the answer of the
// attempt N of the cycle C; PART is the Keeper's own, since two of them may take
// the same attempt), I = 0, 1, ... Chunks are written before what names them.
const (
	inlineBytes = 32 << 10
	chunkBytes  = 768 << 10
	maxWork     = 256 << 10 // of the JSON of a work
)

// work is a request as it is kept.
type work struct {
	ID        lode.InvocationID `json:"id"`
	Namespace lode.Namespace    `json:"namespace"`
	Function  lode.Name         `json:"function"`
	Alias     string            `json:"alias,omitempty"`
	Handler   string            `json:"handler,omitempty"`
	Trigger   lode.Trigger      `json:"trigger"`
	Method    string            `json:"method,omitempty"`
	Path      string            `json:"path,omitempty"`
	Head      []lode.Pair       `json:"head,omitempty"`
	Deadline  time.Time         `json:"deadline,omitzero"`
	Trace     string            `json:"trace"`
	Caller    string            `json:"caller,omitempty"`
	Depth     int               `json:"depth,omitempty"`
	Created   time.Time         `json:"created"`
	Cycle     int               `json:"cycle,omitempty"`  // how often it was replayed
	Chunks    int               `json:"chunks,omitempty"` // of the body, in the table
	Key       string            `json:"key,omitempty"`    // SHA-256 of its idempotency key
}

func workOf(req *lode.Request, now time.Time) *work {
	t := continueTrace(req.Trace)
	w := &work{ID: req.ID, Namespace: req.Namespace, Function: req.Function, Alias: req.Alias, Handler: req.Handler, Trigger: req.Trigger,
		Method: req.Method, Path: req.Path, Head: req.Head, Deadline: req.Deadline, Trace: t.Traceparent(), Caller: req.Caller, Depth: req.Depth,
		Created: now.UTC().Truncate(time.Millisecond)}
	if req.IdempotencyKey != "" {
		w.Key = sum([]byte(req.IdempotencyKey))
	}
	return w
}

func (w *work) request(attempt int, body []byte) *lode.Request {
	return &lode.Request{ID: w.ID, Namespace: w.Namespace, Function: w.Function, Alias: w.Alias, Handler: w.Handler, Trigger: w.Trigger, Attempt: attempt,
		Method: w.Method, Path: w.Path, Head: w.Head, Body: body, Deadline: w.Deadline, Trace: w.Trace, Caller: w.Caller, Depth: w.Depth}
}

// queue is the queue that the work waits in.
func (w *work) queue() string { return callQueue(w.Namespace, w.Function) }

func callQueue(ns lode.Namespace, fn lode.Name) string {
	return "call/" + string(ns) + "/" + string(fn)
}

func (w *work) key() string { return callKey(w.Namespace, w.ID) }

func callKey(ns lode.Namespace, id lode.InvocationID) string { return string(ns) + "/" + string(id) }

// itemID is the id of the item: a replay is another item than the one it
// replays.
func (w *work) itemID() string {
	if w.Cycle == 0 {
		return string(w.ID)
	}
	return fmt.Sprintf("%s.%d", w.ID, w.Cycle)
}

func encodeWork(w *work, body []byte) ([]byte, error) {
	j, err := json.Marshal(w)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(j)+len(body)), uint32(len(j)))
	return append(append(b, j...), body...), nil
}

func decodeWork(b []byte) (*work, []byte, error) {
	if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
		return nil, nil, lode.Errorf(lode.Damaged, "an item of %d bytes is no kept request", len(b))
	}
	n := 4 + int(binary.LittleEndian.Uint32(b))
	var w work
	if err := json.Unmarshal(b[4:n], &w); err != nil {
		return nil, nil, lode.Errorf(lode.Damaged, "a kept request is not readable: %w", err)
	}
	if w.Chunks < 0 || w.ID == "" || w.Namespace == "" || w.Function == "" {
		return nil, nil, lode.Errorf(lode.Damaged, "a kept request lacks its id or function")
	}
	return &w, b[n:], nil
}

// record is what is kept of an invocation that has ended.
type record struct {
	Work     work        `json:"work"` // Chunks are kept only for what may be replayed
	State    lode.State  `json:"state"`
	Dead     bool        `json:"dead,omitempty"`
	Revision string      `json:"revision,omitempty"`
	Attempts int         `json:"attempts"`
	Ended    time.Time   `json:"ended"`
	Usage    *lode.Usage `json:"usage,omitempty"`
	Error    *lode.Error `json:"error,omitempty"`
	Body     []byte      `json:"body,omitempty"` // of the request, for what may be replayed

	Status int         `json:"status,omitempty"`
	Head   []lode.Pair `json:"head,omitempty"`
	Answer []byte      `json:"answer,omitempty"` // empty where Chunks > 0
	Size   int64       `json:"size,omitempty"`   // of the answer
	Chunks int         `json:"chunks,omitempty"` // of the answer, in the table
	Part   string      `json:"part,omitempty"`   // of their keys; absent in old records
}

func requestPrefix(key string) string { return key + "/q" }

func (r *record) answerPrefix() string {
	p := fmt.Sprintf("%s/a%d.%d", r.Work.key(), r.Work.Cycle, r.Attempts)
	if r.Part != "" {
		p += "." + r.Part
	}
	return p
}

// putChunks keeps body under prefix, unless it is short enough to be inline,
// and returns what is to be inline and the number of chunks.
func putChunks(ctx context.Context, t Table, prefix string, body []byte) (inline []byte, chunks int, err error) {
	if len(body) <= inlineBytes {
		return body, 0, nil
	}
	for rest := body; len(rest) > 0; chunks++ {
		n := min(len(rest), chunkBytes)
		if _, err := t.Put(ctx, fmt.Sprintf("%s/%d", prefix, chunks), rest[:n]); err != nil {
			return nil, chunks, err
		}
		rest = rest[n:]
	}
	return nil, chunks, nil
}

func getChunks(ctx context.Context, t Table, prefix string, inline []byte, chunks int) ([]byte, error) {
	if chunks == 0 {
		return inline, nil
	}
	var body []byte
	for i := range chunks {
		e, ok, err := t.Get(ctx, fmt.Sprintf("%s/%d", prefix, i))
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, lode.Errorf(lode.Damaged, "piece %d of %d of %s is missing", i+1, chunks, prefix)
		}
		body = append(body, e.Value...)
	}
	return body, nil
}

// dropAll removes every chunk under prefix, those too that nothing names.
func dropAll(ctx context.Context, t Table, prefix string) error {
	es, err := t.List(ctx, prefix)
	for i := 0; i < len(es) && err == nil; i++ {
		err = t.Delete(ctx, es[i].Key, 0)
	}
	return err
}

func encodeRecord(r *record) ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "keep the result of %s: %w", r.Work.ID, err)
	}
	return b, nil
}

func decodeRecord(b []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, lode.Errorf(lode.Damaged, "a kept result is not readable: %w", err)
	}
	if r.Work.ID == "" || r.State == "" || r.Chunks < 0 || r.Work.Chunks < 0 {
		return nil, lode.Errorf(lode.Damaged, "a kept result lacks its id or state")
	}
	return &r, nil
}
