package api

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"lode"
)

// TestLively: a node that hangs is given up, one that only takes long is not.
func TestLively(t *testing.T) {
	release := make(chan struct{})
	hangs := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			select {
			case <-hangs:
				<-release
			default:
			}
			return
		}
		if r.URL.Path == "/slow" {
			time.Sleep(200 * time.Millisecond)
			return
		}
		<-release
	}))
	defer s.Close()
	defer close(release)
	c := &http.Client{Transport: lively{http.DefaultTransport, 10 * time.Millisecond, 20 * time.Millisecond}}
	resp, err := c.Get(s.URL + "/slow")
	if err != nil {
		t.Fatalf("a node that takes long is given up: %v", err)
	}
	resp.Body.Close()
	close(hangs)
	if _, err := c.Get(s.URL + "/hangs"); lode.KindOf(err) != lode.Unavailable {
		t.Fatalf("a node that hangs: %v", err)
	}
}
