package invoke

import (
	"encoding/json"
	"time"

	"lode"
	"lode/placement"
)

// wireReply is the head of an answer, read.
type wireReply struct {
	what   byte
	status int
	cold   bool
	queued time.Duration
	usage  lode.Usage
	pairs  []lode.Pair
	why    byte          // refused
	wait   time.Duration // refused, asked
	code   placement.Code
	drains bool
}

// hasMore says which answers' heads may go on in the body.
func hasMore(what byte) bool { return what == wireWhole || what == wireBegun }

// parseReply reads the head of an answer that is all in b.
func parseReply(what byte, b []byte) (*wireReply, error) {
	r := wireReader{b: b}
	a := &wireReply{what: what}
	switch what {
	case wireWhole:
		a.status, a.usage = r.small(), r.usage()
		a.cold, a.queued = a.usage.Cold, a.usage.Queued
		a.pairs = r.pairs()
	case wireBegun:
		a.status, a.cold, a.queued = r.small(), r.byte() != 0, time.Duration(r.number())
		a.pairs = r.pairs()
	case wireRefused:
		a.why, a.wait = r.byte(), time.Duration(r.number())
	case wireFailed:
		a.usage = r.usage()
	case wireAsked:
		a.wait, a.code, a.drains = time.Duration(r.number()), placement.Code(min(r.byte(), byte(placement.Warm))), r.byte() != 0
	default:
		r.fail()
	}
	if r.err == nil && hasMore(what) && (a.status < 100 || a.status > 999) {
		r.fail()
	}
	if r.err != nil {
		return nil, lode.Errorf(lode.Internal, "%w", r.err)
	}
	return a, nil
}

// appendFailure writes the error of an invocation as its answer's body.
func appendFailure(err error) []byte {
	e := *lode.AsError(err)
	b, jerr := json.Marshal(&e)
	if jerr != nil {
		b, _ = json.Marshal(&lode.Error{Kind: e.Kind, Detail: e.Detail})
	}
	return b
}

func parseFailure(b []byte) *lode.Error {
	e := new(lode.Error)
	if err := json.Unmarshal(b, e); err != nil || e.Kind == "" {
		return lode.Errorf(lode.Internal, "another node failed and did not say why in words that this node reads")
	}
	if e.Title == (&lode.Error{Kind: e.Kind}).Error() {
		e.Title = "" // the kind's own
	}
	return e
}
