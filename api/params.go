package api

import (
	"net/http"
	"strconv"
	"time"

	"lode"
)

// name is the path value key, checked against the law of names.
func (c *call) name(key string) (lode.Name, error) { return lode.ParseName(c.r.PathValue(key)) }

// page reads limit and after.
func (c *call) page() (Page, error) {
	n, err := c.int("limit", stdLimit)
	if err != nil {
		return Page{}, err
	}
	if n < 1 || n > maxLimit {
		return Page{}, lode.Errorf(lode.Invalid, "limit is %d; want 1 to %d", n, maxLimit)
	}
	return Page{Limit: n, After: c.r.URL.Query().Get("after")}, nil
}

func (c *call) int(key string, def int) (int, error) {
	v := c.r.URL.Query().Get(key)
	if v == "" {
		return def, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return 0, lode.Errorf(lode.Invalid, "%s=%q is not a whole number from 0 on", key, v)
	}
	return n, nil
}

func (c *call) bool(key string) (bool, error) {
	switch v := c.r.URL.Query().Get(key); v {
	case "":
		return false, nil
	default:
		b, err := strconv.ParseBool(v)
		if err != nil {
			return false, lode.Errorf(lode.Invalid, "%s=%q; want 1 or 0", key, v)
		}
		return b, nil
	}
}

// wait reads how long to wait for an end: a duration as Go writes it, at most
// a minute.
func (c *call) wait() (time.Duration, error) {
	v := c.r.URL.Query().Get("wait")
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, lode.Errorf(lode.Invalid, "wait=%q is not a duration such as 30s", v)
	}
	return min(d, maxWait), nil
}

func (c *call) time(key string) (time.Time, error) {
	v := c.r.URL.Query().Get(key)
	if v == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil {
		return t, lode.Errorf(lode.Invalid, "%s=%q is not a time as in RFC 3339", key, v)
	}
	return t, nil
}

// trailers announces the trailer for a late error to clients that want it.
func (c *call) trailers() {
	if c.r.Header.Get("TE") == "trailers" {
		c.w.Header().Set("Trailer", errorTrailer)
	}
}

// flushWriter sends the head with the first byte, so that an error before it
// still has a status of its own, and flushes after each write if asked to.
type flushWriter struct {
	c     *call
	ctype string
	flush bool
}

func (f *flushWriter) Write(p []byte) (int, error) {
	if !f.c.sent {
		f.c.trailers()
		f.c.begin(f.ctype, http.StatusOK)
	}
	n, err := f.c.w.Write(p)
	if err == nil && f.flush {
		err = http.NewResponseController(f.c.w).Flush()
	}
	return n, err
}

// end sends the head of a body that turned out empty.
func (f *flushWriter) end() {
	if !f.c.sent {
		f.c.begin(f.ctype, http.StatusOK)
	}
}
