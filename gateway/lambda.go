package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"lode"
)

// maxClientContext is AWS's bound on X-Amz-Client-Context.
const maxClientContext = 3583

// logTail is how many bytes of log X-Amz-Log-Result carries.
const logTail = 4 << 10

// lambdaCall is one request to the Invoke API, understood.
type lambdaCall struct {
	lambdaName
	operation string // as AWS names it
	kind      string // RequestResponse, Event, DryRun
	tail      bool   // with the end of the log
	stream    bool
	fn        *lode.Function
	caller    caller
}

// serveLambda is the part of AWS's Lambda API that invokes:
// /2015-03-31/functions/{name}/invocations and
// /2021-11-15/functions/{name}/response-streaming-invocations.
func (g *Gateway) serveLambda(w http.ResponseWriter, r *http.Request, local bool) {
	x := g.newExchange(w, r)
	defer x.release()
	call, err := g.lambda(x, w, r, local)
	if err != nil {
		g.refuseLambda(w, x, call, err)
		return
	}
	h := w.Header()
	h.Set("X-Amzn-Requestid", string(x.req.ID))
	h.Set("Lode-Invocation", string(x.req.ID))
	if g.cfg.Node != "" {
		h.Set("Lode-Node", g.cfg.Node)
	}
	switch {
	case call.kind == "DryRun":
		w.WriteHeader(http.StatusNoContent)
	case call.kind == "Event":
		g.lambdaEvent(w, r, x, call)
	case call.stream:
		g.lambdaStream(w, r, x, call)
	default:
		g.lambdaInvoke(w, r, x, call)
	}
}

// lambda understands, checks and reads a request.
func (g *Gateway) lambda(x *exchange, w http.ResponseWriter, r *http.Request, local bool) (*lambdaCall, error) {
	call, err := parseLambda(r)
	if err != nil {
		return call, err
	}
	if err := g.checkOrigin(r); err != nil {
		return call, err
	}
	signed := g.cfg.Public && !local && isSigned(r)
	if call.caller, err = g.identify(r, local, false); err != nil {
		return call, err
	}
	if signed {
		if err := x.readAll(w, r, DefaultBody); err != nil {
			return call, err
		}
		if call.caller, err = g.identifySigned(r, x.req.Body); err != nil {
			return call, err
		}
	}
	access, fn, ok := g.function(call.caller.ns, call.name)
	if !ok {
		return call, g.missing(r, &call.caller, string(call.name))
	}
	call.fn = fn
	if err := g.admit(&call.caller, access, aFunction, call.name); err != nil {
		return call, err
	}
	strip := call.caller
	strip.checked = true // a signature is never for the function
	if err := x.fill(r, &strip, call.name, lode.TriggerLambda); err != nil {
		return call, err
	}
	x.req.Alias, x.req.Path = call.alias, "/"
	if !signed {
		if err := x.readAll(w, r, bodyLimit(fn.Limits.Body)); err != nil {
			return call, err
		}
	}
	if n := int64(len(x.req.Body)); n > bodyLimit(fn.Limits.Body) {
		return call, lode.Errorf(lode.TooLarge, "the body has %d bytes; at most %d", n, bodyLimit(fn.Limits.Body))
	}
	return call, checkPayload(x.req.Body)
}

// checkPayload: the Invoke API takes JSON, or nothing.
func checkPayload(b []byte) error {
	if len(b) == 0 || json.Valid(b) {
		return nil
	}
	return &lambdaError{http.StatusBadRequest, "InvalidRequestContentException", lode.Invalid, "Could not parse request body into json: the payload is not valid JSON"}
}

// parseLambda reads the path and the x-amz headers.
func parseLambda(r *http.Request) (*lambdaCall, error) {
	call := &lambdaCall{operation: "Invoke", kind: "RequestResponse"}
	date, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	rest, ok := strings.CutPrefix(rest, "functions/")
	raw, verb, cut := strings.Cut(rest, "/")
	switch {
	case ok && cut && date == "2015-03-31" && verb == "invocations":
	case ok && cut && date == "2021-11-15" && verb == "response-streaming-invocations":
		call.operation, call.stream = "InvokeWithResponseStream", true
	default:
		return call, &lambdaError{http.StatusNotFound, "UnknownOperationException", lode.NotFound, "of the Lambda API, Invoke and InvokeWithResponseStream are here; deploy with lode deploy"}
	}
	if r.Method != http.MethodPost {
		return call, &lambdaError{http.StatusMethodNotAllowed, "MethodNotAllowedException", lode.BadMethod, call.operation + " takes POST"}
	}
	var err error
	if call.lambdaName, err = parseLambdaName(raw, r.URL.Query().Get("Qualifier")); err != nil {
		return call, err
	}
	return call, call.headers(r.Header)
}

func (call *lambdaCall) headers(h http.Header) error {
	switch kind := h.Get("X-Amz-Invocation-Type"); kind {
	case "":
	case "RequestResponse", "DryRun":
		call.kind = kind
	case "Event":
		if call.stream {
			return invalidParameter("InvokeWithResponseStream does not take the invocation type Event")
		}
		call.kind = kind
	default:
		return invalidParameter(fmt.Sprintf("Value '%s' at 'invocationType' failed to satisfy constraint: Member must satisfy enum value set: [Event, RequestResponse, DryRun]", kind))
	}
	switch v := h.Get("X-Amz-Log-Type"); v {
	case "", "None":
	case "Tail":
		call.tail = true
	default:
		return invalidParameter(fmt.Sprintf("Value '%s' at 'logType' failed to satisfy constraint: Member must satisfy enum value set: [None, Tail]", v))
	}
	if n := len(h.Get("X-Amz-Client-Context")); n > maxClientContext {
		return invalidParameter(fmt.Sprintf("Client context must be no more than %d bytes when base64-encoded", maxClientContext))
	}
	return nil
}

func (g *Gateway) lambdaEvent(w http.ResponseWriter, r *http.Request, x *exchange, call *lambdaCall) {
	x.req.Trigger = lode.TriggerAsync
	id, err := g.cfg.Invoker.Submit(r.Context(), &x.req)
	if err != nil {
		g.refuseLambda(w, x, call, err)
		return
	}
	w.Header().Set("X-Amzn-Requestid", string(id))
	w.Header().Set("Lode-Invocation", string(id))
	w.WriteHeader(http.StatusAccepted)
}

func (g *Gateway) lambdaInvoke(w http.ResponseWriter, r *http.Request, x *exchange, call *lambdaCall) {
	limit := call.fn.Limits.OutputMax
	if limit <= 0 {
		limit = DefaultBody
	}
	answer := lode.Buffered{Max: limit}
	out, err := g.cfg.Invoker.Invoke(r.Context(), &x.req, &answer)
	body := answer.Msg.Body
	if err != nil {
		failure, ok := functionFailure(err, x.req.ID, answer.Status != 0)
		if !ok {
			g.refuseLambda(w, x, call, err)
			return
		}
		body, _ = json.Marshal(failure) // strings always marshal
		w.Header().Set("X-Amz-Function-Error", "Unhandled")
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if out.Node != "" {
		h.Set("Lode-Node", string(out.Node))
	}
	h.Set("X-Amz-Executed-Version", executedVersion(out.Revision))
	h.Set("Lode-Cold", coldValue(out.Usage.Cold))
	h.Set("Server-Timing", timing(out.Usage.Queued, out.Usage.Wall, out.Usage.CPU))
	if call.tail {
		h.Set("X-Amz-Log-Result", g.logResult(r.Context(), call, &out, x.req.ID))
	}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // nobody is left to tell
}

// executedVersion is the number of a revision's id.
func executedVersion(revision string) string {
	if _, n, ok := strings.Cut(revision, "@"); ok {
		return n
	}
	return "$LATEST"
}

// logResult is the end of what the invocation logged, in the form of AWS's
// own logs, in base64.
func (g *Gateway) logResult(ctx context.Context, call *lambdaCall, out *lode.Outcome, id lode.InvocationID) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "START RequestId: %s Version: %s\n", id, executedVersion(out.Revision))
	if g.cfg.Logs != nil {
		b.Write(g.cfg.Logs.Tail(ctx, call.caller.ns, id, logTail))
	}
	u := &out.Usage
	fmt.Fprintf(&b, "END RequestId: %s\nREPORT RequestId: %s\tDuration: %.2f ms\tBilled Duration: %d ms\tMemory Size: %d MB\tMax Memory Used: %d MB\n",
		id, id, float64(u.Wall)/float64(time.Millisecond), (u.Wall+time.Millisecond-1)/time.Millisecond, call.fn.Limits.Memory>>20, (u.Memory+1<<20-1)>>20)
	text := b.Bytes()
	if len(text) > logTail {
		text = text[len(text)-logTail:]
	}
	return base64.StdEncoding.EncodeToString(text)
}
