package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"lode"
)

// lambdaError is an error in AWS's words. It leaves as
//
//	x-amzn-ErrorType: <code>
//	{"Type": "User" | "Service", "Message": "...", ...}
type lambdaError struct {
	status  int
	code    string
	kind    lode.Kind
	message string
}

func (e *lambdaError) Error() string { return e.message }

func invalidParameter(message string) error {
	return &lambdaError{http.StatusBadRequest, "InvalidParameterValueException", lode.Invalid, message}
}

// awsErrors maps the kinds to what the AWS SDKs know; those with a 5xx status
// and 429 are tried again by them.
var awsErrors = map[lode.Kind]struct {
	status int
	code   string
}{
	lode.Invalid:         {400, "InvalidParameterValueException"},
	lode.BadMethod:       {405, "MethodNotAllowedException"},
	lode.Unauthenticated: {403, "UnrecognizedClientException"},
	lode.Denied:          {403, "AccessDeniedException"},
	lode.NotFound:        {404, "ResourceNotFoundException"},
	lode.Gone:            {404, "ResourceNotFoundException"},
	lode.Conflict:        {409, "ResourceConflictException"},
	lode.Precondition:    {412, "PreconditionFailedException"},
	lode.TooLarge:        {413, "RequestTooLargeException"},
	lode.KeyReused:       {409, "ResourceConflictException"},
	lode.Overloaded:      {429, "TooManyRequestsException"},
	lode.Cancelled:       {503, "ServiceException"},
	lode.Unavailable:     {503, "ServiceException"},
	lode.Full:            {503, "ServiceException"},
}

func asLambdaError(err error, call *lambdaCall) *lambdaError {
	if e, ok := err.(*lambdaError); ok { // never wrapped: made in this file's neighbours only
		return e
	}
	e := lode.AsError(err)
	message := e.Error()
	if e.Hint != "" {
		message += " (" + e.Hint + ")"
	}
	aws, ok := awsErrors[e.Kind]
	if !ok {
		aws.status, aws.code = http.StatusInternalServerError, "ServiceException"
	}
	switch e.Kind {
	case lode.NotFound:
		message = fmt.Sprintf("Function not found: %s", message)
	case lode.TooLarge:
		message = fmt.Sprintf("Request must be smaller than %d bytes for the %s operation: %s", DefaultBody, call.operation, message)
	}
	return &lambdaError{aws.status, aws.code, e.Kind, message}
}

// refuseLambda answers with an error of Lode's own, as AWS would.
func (g *Gateway) refuseLambda(w http.ResponseWriter, x *exchange, call *lambdaCall, err error) {
	e := asLambdaError(err, call)
	if g.cfg.Refused != nil {
		g.cfg.Refused(e.kind)
	}
	if e.kind == lode.Internal {
		g.cfg.Log.Error("request failed", "door", "lambda", "function", call.name, "err", err)
	}
	body := map[string]string{"Type": "User", "Message": e.message}
	if e.status >= 500 {
		body["Type"] = "Service"
	}
	h := w.Header()
	if e.kind == lode.Overloaded {
		seconds := strconv.Itoa(max(1, retryAfter(lode.AsError(err))))
		body["Reason"], body["retryAfterSeconds"] = "ConcurrentInvocationLimitExceeded", seconds
		h.Set("Retry-After", seconds)
	}
	h.Set("Content-Type", "application/json")
	h.Set("X-Amzn-Errortype", e.code)
	h.Set("Lode-Error", string(e.kind))
	if x.req.ID != "" {
		h.Set("X-Amzn-Requestid", string(x.req.ID))
	}
	w.WriteHeader(e.status)
	b, _ := json.Marshal(body) // strings always marshal
	_, _ = w.Write(b)
}

// failure is the payload of an invocation whose function failed.
type failure struct {
	Type    string   `json:"errorType"`
	Message string   `json:"errorMessage"`
	Stack   []string `json:"stackTrace,omitempty"`
}

// shortType is a Go type as aws-lambda-go has it: errorString of
// *errors.errorString. Other languages' types have no dot.
func shortType(t string) string {
	if strings.HasPrefix(t, "*") || strings.Contains(t, ".") {
		return t[strings.LastIndexByte(t, '.')+1:]
	}
	return t
}

// functionFailure tells whether err is the function's own failure, which is a
// 200 with X-Amz-Function-Error. begun: the function had begun to answer.
func functionFailure(err error, id lode.InvocationID, begun bool) (failure, bool) {
	e := lode.AsError(err)
	switch {
	case e.Kind == lode.Crashed && e.Guest != nil:
		return failure{shortType(e.Guest.Type), e.Guest.Message, e.Guest.Stack}, true
	case e.Kind == lode.Crashed:
		return failure{Type: "Runtime.ExitError", Message: fmt.Sprintf("RequestId: %s Error: %s", id, e.Error())}, true
	case e.Kind == lode.Deadline:
		return failure{Type: "Sandbox.Timedout", Message: fmt.Sprintf("RequestId: %s Error: Task timed out: %s", id, e.Error())}, true
	case e.Kind == lode.TooLarge && begun:
		return failure{Type: "Function.ResponseSizeTooLarge", Message: "Response payload size exceeded maximum allowed payload size: " + e.Error()}, true
	}
	return failure{}, false
}
