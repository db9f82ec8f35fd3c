package invoke

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"time"

	"lode"
)

// How a node asks the keeper. A call of the link's method "keeper" has the name
// of an operation as its head; the body of the call, and that of its answer, is
// a parcel:
//
//	u32 n    little-endian, length of the JSON
//	JSON     an ask or a reply, as below
//	rest     bytes
//
//	operation  ask        rest of it   reply               rest of it
//	submit     submission body         id                  -
//	put        Put        body         id                  -
//	queue      ask        -            queue               -
//	get        ask        -            call                -
//	list       ask        -            calls, next         -
//	cancel     ask        -            call                -
//	replay     ask        -            call                -
//	result     ask        -            status, head        body
//
// The head of an answer is "ok"; or "gone", with an empty body, from a node
// that is not the keeper. Any other failure is the error of the call.
const (
	opSubmit = "submit"
	opPut    = "put"
	opQueue  = "queue"
	opGet    = "get"
	opList   = "list"
	opCancel = "cancel"
	opReplay = "replay"
	opResult = "result"

	replyOK   = "ok"
	replyGone = "gone"

	maxAsk    = 2 * maxWork // bytes of the JSON of an ask
	maxListed = 1000        // calls in one answer
)

// submission is a request to be submitted. Its trace is the sender's own.
type submission struct {
	Work work   `json:"work"`
	Key  string `json:"key,omitempty"` // the idempotency key
}

// ask names what is asked for; each operation uses what it needs.
type ask struct {
	Namespace lode.Namespace    `json:"namespace"`
	ID        lode.InvocationID `json:"id,omitempty"`
	Queue     lode.Name         `json:"queue,omitempty"`
	Wait      time.Duration     `json:"wait,omitempty"` // get: for the end, ns
	Filter    CallFilter        `json:"filter,omitzero"`
	Limit     int               `json:"limit,omitempty"`
	After     lode.InvocationID `json:"after,omitempty"`
}

type reply struct {
	ID     string            `json:"id,omitempty"`
	Queue  *QueueState       `json:"queue,omitempty"`
	Call   *Call             `json:"call,omitempty"`
	Calls  []Call            `json:"calls,omitempty"`
	Next   lode.InvocationID `json:"next,omitempty"`
	Status int               `json:"status,omitempty"`
	Head   []lode.Pair       `json:"head,omitempty"`
}

func encodeParcel(v any, rest []byte) ([]byte, error) {
	j, err := json.Marshal(v)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "write to the keeper: %w", err)
	}
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(j)+len(rest)), uint32(len(j)))
	return append(append(b, j...), rest...), nil
}

// readParcel reads the JSON of a parcel into v and leaves r at the rest.
func readParcel(r io.Reader, v any) error {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return lode.Errorf(lode.Invalid, "a parcel for the keeper is cut short: %w", err)
	}
	size := binary.LittleEndian.Uint32(n[:])
	if size > maxAsk {
		return lode.Errorf(lode.TooLarge, "the head of a parcel for the keeper has %d bytes; at most %d", size, maxAsk)
	}
	j := make([]byte, size)
	if _, err := io.ReadFull(r, j); err != nil {
		return lode.Errorf(lode.Invalid, "a parcel for the keeper is cut short: %w", err)
	}
	if err := json.Unmarshal(j, v); err != nil {
		return lode.Errorf(lode.Invalid, "a parcel for the keeper is not readable: %w", err)
	}
	return nil
}

// readRest reads what is left of a parcel, at most so many bytes.
func readRest(r io.Reader, most int64, of string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, lode.Errorf(lode.Cancelled, "read the body of %s: %w", of, err)
	}
	if int64(len(b)) > most {
		return nil, lode.Errorf(lode.TooLarge, "the body of %s is over %d bytes", of, most).WithHint("raise its body limit")
	}
	return b, nil
}

// request is the request that was submitted, without its body.
func (s *submission) request() (*lode.Request, error) {
	w := &s.Work
	if w.ID == "" || len(w.ID) > maxKey || w.Namespace == "" || w.Function == "" {
		return nil, lode.Errorf(lode.Invalid, "a submitted request lacks its id or function")
	}
	req := w.request(0, nil)
	req.IdempotencyKey = s.Key
	return req, nil
}

func submissionOf(req *lode.Request) *submission {
	s := &submission{Work: *workOf(req, time.Time{}), Key: req.IdempotencyKey}
	s.Work.Trace, s.Work.Key = req.Trace, ""
	return s
}

// decodeReply reads an answer's body.
func decodeReply(b []byte) (r reply, rest []byte, err error) {
	if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
		return r, nil, lode.Errorf(lode.Internal, "the keeper's answer of %d bytes is not readable", len(b))
	}
	n := 4 + int(binary.LittleEndian.Uint32(b))
	if err := json.Unmarshal(b[4:n], &r); err != nil {
		return r, nil, lode.Errorf(lode.Internal, "the keeper's answer is not readable: %w", err)
	}
	return r, b[n:], nil
}
