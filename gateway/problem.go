package gateway

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"os"
	"strconv"
	"time"

	"lode"
)

// refuse answers r with an error of Lode's own.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, err error) {
	e := lode.AsError(err)
	if r.ContentLength != 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
		setReadDeadline(w, time.Now().Add(unreadWait))
	}
	if g.cfg.Refused != nil {
		g.cfg.Refused(e.Kind)
	}
	if e.Kind == lode.Internal {
		g.cfg.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	g.writeProblem(w, e)
}

// writeProblem writes e as problem+json (RFC 9457). It replaces the head that
// w has so far, but for what says something of the connection to the browser.
func (g *Gateway) writeProblem(w http.ResponseWriter, e *lode.Error) {
	body, err := json.Marshal(e)
	if err != nil {
		body = []byte("{}") // cannot be: an Error holds nothing that JSON cannot say
	}
	h := w.Header()
	h["Content-Type"] = []string{"application/problem+json"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	h["Lode-Error"] = []string{string(e.Kind)}
	if g.cfg.Node != "" {
		h["Lode-Node"] = []string{g.cfg.Node}
	}
	if e.Invocation != "" {
		h["Lode-Invocation"] = []string{string(e.Invocation)}
	}
	if s := retryAfter(e); s > 0 {
		h["Retry-After"] = []string{strconv.Itoa(s)}
	}
	if e.Kind == lode.Unauthenticated {
		h["Www-Authenticate"] = []string{`Bearer realm="lode"`}
	}
	status := e.Kind.Status()
	if e.Kind == lode.Cancelled {
		status = http.StatusServiceUnavailable // 499 is for the log; somebody who still listens did not go away
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// retryAfter is in whole seconds, rounded up; 0 = none.
func retryAfter(e *lode.Error) int {
	if e.RetryAfter > 0 {
		return int(math.Ceil(min(e.RetryAfter, 24*time.Hour).Seconds()))
	}
	if e.Kind == lode.Overloaded {
		return 1
	}
	return 0
}

func badMethod(r *http.Request, allow string) error {
	return lode.Errorf(lode.BadMethod, "this door does not take %s", r.Method).WithHint("it takes %s", allow)
}

// explainer is an optional ability of a Directory: to know more of a function
// that Lookup does not find than that it is not there. nil: that is all.
type explainer interface {
	Absent(ns lode.Namespace, name lode.Name) error
}

func (g *Gateway) unknownFunction(ns lode.Namespace, name string) error {
	if d, ok := g.cfg.Directory.(explainer); ok {
		if err := d.Absent(ns, lode.Name(name)); err != nil {
			return err
		}
	}
	if g.cfg.Agents != nil {
		if _, _, ok := g.cfg.Agents.Kind(ns, lode.Name(name)); ok {
			return lode.Errorf(lode.NotFound, "%s is a kind of agents, not a function", name).WithHint("they are called at /agents/%s/KEY/METHOD", name)
		}
	}
	e := lode.Errorf(lode.NotFound, "no function %q in namespace %s", name, ns)
	if s := lode.Suggest(name, g.cfg.Directory.Names(ns)); s != "" {
		return e.WithHint("did you mean %q?", s)
	}
	return e.WithHint("lode ls shows what is deployed")
}
