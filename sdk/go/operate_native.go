//go:build !wasip1

package lode

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"lode/sdk/abi"
)

// operate does natively what an operation does inside Lode: what concerns
// agents of this program happens in its memory; calls and queues go to the
// node at $LODE_URL (http://127.0.0.1:5633) with $LODE_TOKEN, configuration and
// secrets come from the environment.
func operate(ctx context.Context, op abi.Op, m message) (message, error) {
	if h, ok := ctx.Value(hostKey{}).(host); ok && ownOperation(op, m.get(":address")) {
		return fromSolo(h.Operate(ctx, op, toSolo(m)))
	}
	switch op {
	case abi.OpConfig, abi.OpSecret:
		v, ok := os.LookupEnv(m.get(":key"))
		if !ok {
			return message{}, &Error{Kind: NotFound, Detail: m.get(":key") + " is not set", Hint: "natively it is read from the environment"}
		}
		return message{body: []byte(v)}, nil
	case abi.OpSelf:
		host, _ := os.Hostname()
		return message{head: []pair{{":node", host}}}, nil
	case abi.OpCall:
		if kind, key, ok := strings.Cut(m.get(":address"), "/"); ok {
			return post(ctx, "/agents/"+url.PathEscape(kind)+"/"+url.PathEscape(key)+"/"+url.PathEscape(m.get(":verb")), m)
		}
		return post(ctx, "/fn/"+url.PathEscape(m.get(":address")), m)
	case abi.OpSend:
		kind, key, _ := strings.Cut(m.get(":address"), "/")
		m.head = append(m.head, pair{"prefer", "respond-async"})
		r, err := post(ctx, "/agents/"+url.PathEscape(kind)+"/"+url.PathEscape(key)+"/"+url.PathEscape(m.get(":verb")), m)
		if status, _ := strconv.Atoi(r.get(":status")); err == nil && status >= 400 {
			err = calleeError(m.get(":address"), status, r)
		}
		return r, err
	case abi.OpQueue:
		return put(ctx, m)
	}
	return message{}, &Error{Kind: Unavailable, Detail: "this operation needs a node", Hint: "deploy the function: lode dev"}
}

func put(ctx context.Context, m message) (message, error) {
	r, err := post(ctx, "/queues/"+url.PathEscape(m.get(":queue")), m)
	if err != nil {
		return r, err
	}
	if status, _ := strconv.Atoi(r.get(":status")); status >= 400 {
		return message{}, calleeError("queue "+m.get(":queue"), status, r)
	}
	var id struct {
		ID string `json:"id"`
	}
	json.Unmarshal(r.body, &id)
	return message{head: []pair{{":id", id.ID}}}, nil
}

// post sends m's fields and body to a door of the node.
func post(ctx context.Context, path string, m message) (message, error) {
	base := os.Getenv("LODE_URL")
	if base == "" {
		base = "http://127.0.0.1:5633"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(base, "/")+path, bytes.NewReader(m.body))
	if err != nil {
		return message{}, &Error{Kind: Invalid, Detail: err.Error(), Hint: "check LODE_URL"}
	}
	if t := os.Getenv("LODE_TOKEN"); t != "" {
		r.Header.Set("Authorization", "Bearer "+t)
	}
	doors := map[string]string{":handler": "Lode-Handler", ":key": "Idempotency-Key", ":delay": "Lode-Delay"}
	for _, p := range m.head {
		if name := doors[p.key]; name != "" {
			r.Header.Set(name, p.value)
		} else if !strings.HasPrefix(p.key, ":") {
			r.Header.Add(p.key, p.value)
		}
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return message{}, &Error{Kind: Unavailable, Detail: err.Error(), Hint: "is a node up? set LODE_URL"}
	}
	defer resp.Body.Close()
	out := message{head: fields([]pair{{":status", strconv.Itoa(resp.StatusCode)}}, resp.Header)}
	out.body, err = io.ReadAll(resp.Body)
	return out, err
}
