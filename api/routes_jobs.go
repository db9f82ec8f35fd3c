package api

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"lode"
)

func jobRoutes() []route {
	return []route{
		{id: "jobs.create", method: "POST", path: "/v1/jobs", role: RoleCall, write: true, summary: "Run a function over the shards of a dataset", body: JobSpec{}, reply: Job{}, serve: createJob},
		{id: "jobs.list", method: "GET", path: "/v1/jobs", role: RoleRead, summary: "List jobs, newest first", query: paging, reply: List[Job]{}, serve: listJobs},
		{id: "jobs.get", method: "GET", path: "/v1/jobs/{id}", role: RoleRead, summary: "One job", query: waiting, reply: Job{}, serve: getJob},
		{id: "jobs.watch", method: "GET", path: "/v1/jobs/{id}/watch", role: RoleRead, summary: "The job at each change, as server-sent events, until its end", rawType: "text/event-stream", serve: watchJob},
		{id: "jobs.cancel", method: "POST", path: "/v1/jobs/{id}/cancel", role: RoleCall, write: true, summary: "Cancel a job", reply: Job{}, serve: cancelJob},
		{id: "jobs.result", method: "GET", path: "/v1/jobs/{id}/result", role: RoleCall, summary: "The merged result", rawType: "application/octet-stream", serve: jobResult},
	}
}

func createJob(c *call) error {
	if c.b.Jobs == nil {
		return missing("jobs")
	}
	var s JobSpec
	if err := c.read(&s); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	if s.Inline != nil && !c.grant.Role.May(RoleDeploy) {
		return lode.Errorf(lode.Denied, "code that is not deployed needs the role deploy; this token has %s", c.grant.Role).WithHint("run a deployed function by its name")
	}
	if s.Into != "" && !c.grant.Role.May(RoleDeploy) {
		return lode.Errorf(lode.Denied, "a job that writes a dataset needs the role deploy; this token has %s", c.grant.Role)
	}
	v, err := c.b.Jobs.CreateJob(c.r.Context(), c.ns, s)
	if err != nil {
		return err
	}
	c.w.Header().Set("Location", "/v1/jobs/"+v.ID)
	return c.json(v, "")
}

// check finds what no backend needs to be asked about.
func (s *JobSpec) check() error {
	builtin := strings.HasPrefix(string(s.Function), "builtin:") // Inline may be its filter
	if (s.Function == "") == (s.Inline == nil) && !builtin {
		return lode.Errorf(lode.Invalid, "a job needs one of function and inline")
	}
	for _, n := range []lode.Name{s.Function, s.Dataset, s.Into} {
		if n == "" && s.Dataset != "" || n == s.Function && builtin {
			continue
		}
		if _, err := lode.ParseName(string(n)); err != nil {
			return err
		}
	}
	if s.Version < 0 || s.Limit < 0 || s.Retries < -1 {
		return lode.Errorf(lode.Invalid, "version and limit are at least 0, retries at least -1")
	}
	return nil
}

func listJobs(c *call) error {
	if c.b.Jobs == nil {
		return missing("jobs")
	}
	return listing(c, func(p Page) (List[Job], error) { return c.b.Jobs.ListJobs(c.r.Context(), c.ns, p) })
}

var jobID = regexp.MustCompile(`^j-[0-9A-Za-z]{1,32}$`)

// withJob runs do with the noun and the id in the path.
func (c *call) withJob(do func(Jobs, string) error) error {
	if c.b.Jobs == nil {
		return missing("jobs")
	}
	id := c.r.PathValue("id")
	if !jobID.MatchString(id) {
		return lode.Errorf(lode.NotFound, "no job %q", id).WithHint("job ids look like j-7Q2; lode jobs ls lists them")
	}
	return do(c.b.Jobs, id)
}

func getJob(c *call) error {
	return c.withJob(func(b Jobs, id string) error {
		d, err := c.wait()
		if err != nil {
			return err
		}
		v, err := b.GetJob(c.r.Context(), c.ns, id, d)
		if err != nil {
			return err
		}
		return c.json(v, "")
	})
}

func cancelJob(c *call) error {
	return c.withJob(func(b Jobs, id string) error {
		v, err := b.CancelJob(c.r.Context(), c.ns, id)
		if err != nil {
			return err
		}
		return c.json(v, "")
	})
}

func jobResult(c *call) error {
	return c.withJob(func(b Jobs, id string) error {
		v, err := b.JobResult(c.r.Context(), c.ns, id)
		if err != nil {
			return err
		}
		return c.content(v)
	})
}

// watchJob streams "event: job" with a Job as data; a failure of the stream
// itself is "event: error" with a problem.
func watchJob(c *call) error {
	return c.withJob(func(b Jobs, id string) error {
		w := &flushWriter{c: c, ctype: "text/event-stream", flush: true}
		err := b.WatchJob(c.r.Context(), c.ns, id, func(j Job) error { return event(w, "job", j) })
		if err != nil && c.sent {
			return c.gone(event(w, "error", lode.AsError(err)))
		}
		return err
	})
}

func event(w *flushWriter, kind string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.c.w.Header().Set("Cache-Control", "no-store")
	_, err = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, b)
	return err
}
