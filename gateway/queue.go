package gateway

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"lode"
)

// maxMessage bounds the body of one queue message.
const maxMessage = 1 << 20

// maxDelay bounds Lode-Delay.
const maxDelay = 30 * 24 * time.Hour

// serveQueue is POST /queues/{name}: 202 when the message is durable.
func (g *Gateway) serveQueue(w http.ResponseWriter, r *http.Request, local bool) {
	id, err := g.putQueue(w, r, local)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	g.accepted(w, id)
}

func (g *Gateway) putQueue(w http.ResponseWriter, r *http.Request, local bool) (string, error) {
	if err := g.checkOrigin(r); err != nil {
		return "", err
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		return "", badMethod(r, "POST")
	}
	c, err := g.identify(r, local, true)
	if err != nil {
		return "", err
	}
	if c.checked && !c.grant.Role.mayCall() {
		return "", lode.Errorf(lode.Denied, "a token of role %s may not put messages", c.grant.Role)
	}
	name, err := lode.ParseName(strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/queues"), "/"))
	if err != nil {
		return "", err
	}
	delay, err := parseDelay(r.Header.Get("Lode-Delay"))
	if err != nil {
		return "", err
	}
	key := r.Header.Get("Idempotency-Key")
	if len(key) > 255 {
		return "", lode.Errorf(lode.Invalid, "the idempotency key has %d bytes; at most 255", len(key))
	}
	x := g.newExchange(w, r)
	defer x.release()
	if err := x.readAll(w, r, maxMessage); err != nil {
		return "", err
	}
	return g.cfg.Invoker.PutQueue(r.Context(), c.ns, name, key, delay, r.Header.Get("Content-Type"), x.req.Body)
}

// parseDelay reads milliseconds, or a duration such as 30s.
func parseDelay(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if ms, numErr := strconv.ParseInt(s, 10, 64); numErr == nil && ms <= int64(maxDelay/time.Millisecond) {
		d, err = time.Duration(ms)*time.Millisecond, nil
	}
	if err != nil || d < 0 || d > maxDelay {
		return 0, lode.Errorf(lode.Invalid, "Lode-Delay is %q: want milliseconds, or a duration up to 30 days such as 30s", s)
	}
	return d, nil
}
