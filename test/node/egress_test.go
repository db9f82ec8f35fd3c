//go:build linux

package node

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// TestEgress: a function reaches public addresses and what its egress names,
// and nothing else, however the address is dressed up.
func TestEgress(t *testing.T) {
	p, s := startLab(t)
	port := s.URL[strings.LastIndexByte(s.URL, ':'):]
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("inside")) }))
	defer inside.Close()
	_, insidePort, _ := net.SplitHostPort(inside.Listener.Addr().String())
	mux := http.NewServeMux()
	for path, to := range map[string]string{"/loopback": "http://localhost:" + insidePort + "/", "/metadata": "http://169.254.169.254/latest/meta-data/", "/same": inside.URL + "/"} {
		mux.Handle(path, http.RedirectHandler(to, http.StatusFound))
	}
	redirects := httptest.NewServer(mux)
	defer redirects.Close()
	fetch := func(fn, target string) (out struct {
		Status      int
		Body        string
		Error, Kind string
	}) {
		t.Helper()
		status, body, _ := p.post("/fn/"+fn+"/fetch?u="+url.QueryEscape(target), "")
		if status != 200 || json.Unmarshal([]byte(body), &out) != nil {
			t.Fatalf("%s fetches %s: %d %s", fn, target, status, body)
		}
		return out
	}
	for _, target := range []string{"http://127.0.0.1" + port, "http://127.1.2.3/", "http://10.0.0.1/", "http://192.168.1.1/", "http://172.16.0.1/", "http://100.64.0.1/",
		"http://169.254.169.254/latest/meta-data/", "http://[::1]" + port, "http://[::ffff:127.0.0.1]" + port, "http://[fe80::1]/", "http://[fd00::1]/", "http://0.0.0.0" + port,
		"http://localhost" + port, "http://localhost." + port, "http://2130706433" + port, "http://0x7f.1" + port, "http://[64:ff9b::7f00:1]" + port} {
		for _, fn := range []string{"safe", "none"} {
			if r := fetch(fn, target); r.Status != 0 || r.Kind != "denied" && r.Kind != "unavailable" && r.Kind != "not_found" {
				t.Errorf("%s fetches %s: %+v", fn, target, r)
			} else {
				t.Logf("%s: %s: %s", fn, target, r.Error)
			}
		}
	}
	if r := fetch("web", inside.URL); r.Body != "inside" {
		t.Errorf("an address that is listed: %+v", r)
	}
	if r := fetch("web", redirects.URL+"/same"); r.Body != "inside" {
		t.Errorf("a redirect to an address that is listed: %+v", r)
	}
	for _, path := range []string{"/loopback", "/metadata"} {
		if r := fetch("web", redirects.URL+path); r.Status != 0 && r.Status/100 != 3 || strings.Contains(r.Body, "inside") || r.Kind != "denied" {
			t.Errorf("a redirect to %s: %+v", path, r)
		}
	}
	p.alive()
}
