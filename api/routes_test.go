package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"lode"
)

// TestOpenAPI holds the document against what the handler answers: each
// operation reaches its route, and every route is an operation.
func TestOpenAPI(t *testing.T) {
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
			Summary     string
		}
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal(OpenAPI(), &doc); err != nil {
		t.Fatal(err)
	}
	s := NewServer(Backend{})
	ids := map[string]bool{}
	for path, ops := range doc.Paths {
		for method, op := range ops {
			if op.OperationID == "" || op.Summary == "" || ids[op.OperationID] {
				t.Errorf("%s %s: operation %q, summary %q", method, path, op.OperationID, op.Summary)
			}
			ids[op.OperationID] = true
			r := httptest.NewRequest(strings.ToUpper(method), strings.NewReplacer("{", "", "}", "").Replace(path), nil)
			if _, pattern := s.mux.Handler(r); pattern != strings.ToUpper(method)+" "+path {
				t.Errorf("%s %s goes to %q", method, path, pattern)
			}
		}
	}
	for _, rt := range routes() {
		if !ids[rt.id] {
			t.Errorf("route %s is not in the document", rt.id)
		}
		if rt.write != (rt.method != "GET" && rt.method != "HEAD" && rt.id != "blobs.put") {
			t.Errorf("route %s: write is %v", rt.id, rt.write)
		}
		if rank[rt.role] == 0 {
			t.Errorf("route %s has no role", rt.id)
		}
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				if doc.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")] == nil {
					t.Errorf("%s leads nowhere", ref)
				}
			}
			for _, e := range v {
				walk(e)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	var all any
	json.Unmarshal(OpenAPI(), &all)
	walk(all)
}

// TestEveryRouteNeedsAGrant asks each route without one.
func TestEveryRouteNeedsAGrant(t *testing.T) {
	s := NewServer(Backend{})
	for _, rt := range routes() {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(rt.method, strings.NewReplacer("{", "", "}", "").Replace(rt.path), nil))
		if w.Code != 401 || w.Header().Get("Lode-Error") != "unauthenticated" || w.Header().Get("Www-Authenticate") == "" {
			t.Errorf("%s %s: %d", rt.method, rt.path, w.Code)
		}
		// With a grant and no backend every noun says what is missing, or that
		// the request is wrong; nothing panics.
		r := httptest.NewRequest(rt.method, strings.NewReplacer("{", "", "}", "").Replace(rt.path), nil)
		w = httptest.NewRecorder()
		s.ServeHTTP(w, r.WithContext(WithGrant(r.Context(), Grant{Role: RoleAdmin})))
		if ok := rt.id == "whoami" || rt.id == "openapi"; ok != (w.Code == 200) || !ok && w.Code < 400 {
			t.Errorf("%s %s without a backend: %d", rt.method, rt.path, w.Code)
		}
	}
}

func TestNoRoute(t *testing.T) {
	s := NewServer(Backend{})
	for _, tt := range []struct {
		method, path string
		status       int
		hint         string
	}{
		{"GET", "/v1/aps/x", 404, "did you mean /v1/apps/x?"},
		{"GET", "/v1/zzzzzz", 404, "GET /v1/openapi.json lists what there is"},
		{"PATCH", "/v1/apps/x", 405, "it takes GET, PUT, DELETE, HEAD"},
		{"POST", "/v1/version", 405, "it takes GET, HEAD"},
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		var e lode.Error
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != tt.status || e.Hint != tt.hint {
			t.Errorf("%s %s: %d, %q, %v", tt.method, tt.path, w.Code, e.Hint, err)
		}
		if (w.Code == 405) != (w.Header().Get("Allow") != "") {
			t.Errorf("%s %s: Allow %q", tt.method, tt.path, w.Header().Get("Allow"))
		}
	}
}

func TestBodies(t *testing.T) {
	s := NewServer(Backend{Apps: struct{ Apps }{}, Secrets: struct{ Secrets }{}, Nodes: struct{ Nodes }{}})
	send := func(method, path, ctype, body string) (int, string) {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Content-Type", ctype)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r.WithContext(WithGrant(r.Context(), Grant{Role: RoleAdmin})))
		var e lode.Error
		json.Unmarshal(w.Body.Bytes(), &e)
		return w.Code, e.Detail
	}
	for _, tt := range []struct {
		method, path, ctype, body, detail string
		status                            int
	}{
		{"PUT", "/v1/apps/a", "application/json", "", "the body is empty", 400},
		{"PUT", "/v1/apps/a", "application/json", `{"app":`, "cut short", 400},
		{"PUT", "/v1/apps/a", "application/json", `{"ap": "a"}`, `unknown field "ap"`, 400},
		{"PUT", "/v1/apps/a", "application/json", `{"app": "a"} {}`, "more than one JSON value", 400},
		{"PUT", "/v1/apps/a", "application/json", `{"app": "b"}`, "the path names app a, the body b", 400},
		{"PUT", "/v1/apps/a", "text/html", `{}`, "takes application/json", 400},
		{"PUT", "/v1/apps/A", "application/json", `{}`, `"A" is not a name`, 400},
		{"PUT", "/v1/apps/a?plan=maybe", "application/json", `{}`, `plan="maybe"`, 400},
		{"PUT", "/v1/secrets/K", "", "", "the value of K is empty", 400},
		{"PUT", "/v1/secrets/K-1", "", "v", "not the name of a secret", 400},
		{"PUT", "/v1/secrets/K", "", strings.Repeat("x", maxSecret+1), "over 65536 bytes", 413},
		{"POST", "/v1/tokens/join", "", `{"uses": 101}`, "1 to 100 nodes", 400},
		{"POST", "/v1/tokens/join", "", `{"for_seconds": -5}`, "a second to seven days", 400},
		{"POST", "/v1/tokens/join", "", `{"for_seconds": 9223372036854775807}`, "a second to seven days", 400},
		{"GET", "/v1/apps?limit=0", "", "", "limit is 0", 400},
		{"GET", "/v1/apps?limit=-1", "", "", "not a whole number", 400},
	} {
		status, detail := send(tt.method, tt.path, tt.ctype, tt.body)
		if status != tt.status || !strings.Contains(detail, tt.detail) {
			t.Errorf("%s %s %.20q: %d %q", tt.method, tt.path, tt.body, status, detail)
		}
	}
}

func TestWriteError(t *testing.T) {
	w := httptest.NewRecorder()
	WriteError(w, &lode.Error{Kind: lode.Overloaded, RetryAfter: 1500e6})
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "2" || w.Header().Get("Lode-Error") != "overloaded" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func FuzzTokenID(f *testing.F) {
	_, token := MintToken()
	f.Add(token)
	f.Add("lt__")
	f.Fuzz(func(t *testing.T, s string) {
		id, ok := TokenID(s)
		if ok && !strings.HasPrefix(s, tokenPrefix+id+"_") {
			t.Errorf("%q has the id %q", s, id)
		}
	})
}

func FuzzAWSTokenID(f *testing.F) {
	f.Add(AWSAccessKey("0123456789abcdef"))
	f.Add("AKIAIOSFODNN7EXAMPLE")
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := AWSTokenID(s); ok && AWSAccessKey(id) != s {
			t.Errorf("%q has the id %q", s, id)
		}
	})
}

func TestTokens(t *testing.T) {
	id, token := MintToken()
	if got, ok := TokenID(token); !ok || got != id {
		t.Errorf("%q %v", got, ok)
	}
	if !TokenMatches(token, HashToken(token)) || TokenMatches(token+"0", HashToken(token)) || TokenMatches("", "") || strings.Contains(HashToken(token), token[20:]) {
		t.Error("matching is wrong")
	}
}
