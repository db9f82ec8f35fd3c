package invoke

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lode"
)

func mustPlan(t *testing.T, cron, zone string) *plan {
	t.Helper()
	p, err := newPlan(lode.Schedule{Cron: cron, Zone: zone})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t.UTC()
}

func TestPlanNext(t *testing.T) {
	for _, c := range []struct{ cron, zone, after, want string }{
		{"*/5 * * * *", "", "2026-03-01T00:00:00Z", "2026-03-01T00:05:00Z"},
		{"*/5 * * * *", "", "2026-03-01T00:04:59Z", "2026-03-01T00:05:00Z"},
		{"0 3 * * *", "", "2026-03-01T03:00:00Z", "2026-03-02T03:00:00Z"},
		{"0 3 * * 1", "", "2026-03-01T03:00:00Z", "2026-03-02T03:00:00Z"}, // a Monday
		{"0 0 29 2 *", "", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"@every 90s", "", "2026-03-01T00:00:00Z", "2026-03-01T00:01:30Z"},
		{"0 9 * * *", "Asia/Tokyo", "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"},
		// Berlin: 02:00 to 03:00 does not exist on 29 March 2026.
		{"30 2 * * *", "Europe/Berlin", "2026-03-28T01:30:00Z", "2026-03-29T01:30:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"},
		// 02:00 to 03:00 comes twice on 25 October 2026; it is due once.
		{"30 2 * * *", "Europe/Berlin", "2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", "2026-10-26T01:30:00Z"},
		// An entry for every hour goes by elapsed time.
		{"0 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"},
		{"0 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z"},
	} {
		if got := mustPlan(t, c.cron, c.zone).next(at(c.after)); !got.Equal(at(c.want)) {
			t.Errorf("%q %s after %s: %s, want %s", c.cron, c.zone, c.after, got.Format(time.RFC3339), c.want)
		}
	}
	if got := mustPlan(t, "0 0 30 2 *", "").next(at("2026-03-01T00:00:00Z")); !got.IsZero() {
		t.Errorf("30 February is %s", got)
	}
}

func TestPlanInvalid(t *testing.T) {
	for _, s := range []lode.Schedule{{Cron: ""}, {Cron: "* * * *"}, {Cron: "* * * * * *"}, {Cron: "61 * * * *"}, {Cron: "@every 0s"}, {Cron: "@every x"},
		{Cron: "@every 10ms"}, {Cron: "TZ=UTC"}, {Cron: "TZ=UTC 0 3 * * *"}, {Cron: "0 3 * * *", Zone: "Mars"}, {Cron: "0 3 * * *", Zone: "Local"}} {
		if _, err := newPlan(s); lode.KindOf(err) != lode.Invalid {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestPlanAt(t *testing.T) {
	const last = "2026-03-01T03:00:00Z"
	for name, c := range map[string]struct{ cron, last, now, due, next string }{
		"not yet":              {"0 3 * * *", last, "2026-03-02T02:59:59Z", "", "2026-03-02T03:00:00Z"},
		"due":                  {"0 3 * * *", last, "2026-03-02T03:00:00Z", "2026-03-02T03:00:00Z", "2026-03-03T03:00:00Z"},
		"missed three":         {"0 3 * * *", last, "2026-03-04T12:00:00Z", "2026-03-04T03:00:00Z", "2026-03-05T03:00:00Z"},
		"an hour forward":      {"*/5 * * * *", last, "2026-03-01T04:01:00Z", "2026-03-01T04:00:00Z", "2026-03-01T04:05:00Z"},
		"an hour back":         {"*/5 * * * *", last, "2026-03-01T02:00:00Z", "", "2026-03-01T03:05:00Z"},
		"years forward":        {"*/5 * * * *", last, "2036-03-01T00:01:00Z", "2036-03-01T00:00:00Z", "2036-03-01T00:05:00Z"},
		"years forward, rare":  {"0 0 29 2 *", last, "2036-03-01T00:00:00Z", "2036-02-29T00:00:00Z", "2040-02-29T00:00:00Z"},
		"back by years":        {"*/5 * * * *", last, "2016-03-01T00:01:00Z", "rebase", "2016-03-01T00:05:00Z"},
		"every":                {"@every 10s", last, "2026-03-01T03:00:25Z", "2026-03-01T03:00:20Z", "2026-03-01T03:00:30Z"},
		"every, an hour back":  {"@every 10s", last, "2026-03-01T02:00:00Z", "rebase", "2026-03-01T02:00:10Z"},
		"every, years forward": {"@every 10s", last, "2036-03-01T03:00:05Z", "2036-03-01T03:00:00Z", "2036-03-01T03:00:10Z"},
	} {
		got := mustPlan(t, c.cron, "").at(at(c.last), at(c.now))
		ok := got.next.Equal(at(c.next)) && got.rebase == (c.due == "rebase")
		if c.due != "" && c.due != "rebase" {
			ok = ok && got.due.Equal(at(c.due))
		} else {
			ok = ok && got.due.IsZero()
		}
		if !ok {
			t.Errorf("%s: %+v, want %+v", name, got, c)
		}
	}
}

// jumper is a clock that can be set.
type jumper struct {
	mu    sync.Mutex
	shift time.Duration
}

func (j *jumper) now() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return time.Now().Add(j.shift)
}

func (j *jumper) jump(d time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.shift += d
}

// dues lists the due times of the runs of a scheduled function.
type dues struct {
	mu   sync.Mutex
	list []string
}

func (d *dues) code(g *guest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, g.head.Get(":schedule"))
	return g.answer(200, "")
}

func (d *dues) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.list
	d.list = nil
	return out
}

func TestScheduleClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // begins at 2000-01-01T00:00:00Z
		w, m, d, clock := newWorld(), newMemory(), &dues{}, &jumper{}
		w.deploy("tick", lode.Function{Schedules: []lode.Schedule{{Cron: "*/10 * * * *"}}}, d.code)
		s := durable(t, w, m, Config{Now: clock.now})
		expect := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			got := d.take()
			if len(got) != len(want) {
				t.Fatalf("%s: ran for %v, want %v", what, got, want)
			}
			for i := range got {
				if got[i] != "2000-01-01T"+want[i]+":00Z" {
					t.Fatalf("%s: ran for %v, want %v", what, got, want)
				}
			}
		}
		time.Sleep(25 * time.Minute) // 00:25
		expect("two ticks", "00:10", "00:20")
		clock.jump(time.Hour) // 01:25
		time.Sleep(time.Minute)
		expect("forward an hour runs once", "01:20")
		clock.jump(-time.Hour) // 00:26
		time.Sleep(time.Hour)  // 01:26
		expect("back an hour runs nothing twice")
		time.Sleep(5 * time.Minute)
		expect("and goes on", "01:30")
		s.Close()
		time.Sleep(2 * time.Hour) // 03:31
		s = durable(t, w, m, Config{Now: clock.now})
		defer s.Close()
		time.Sleep(time.Minute)
		expect("a missed one runs once after a restart", "03:30")
		w.remove("tick")
		time.Sleep(time.Hour) // 04:32
		expect("removed")
		w.deploy("tick", lode.Function{Schedules: []lode.Schedule{{Cron: "*/10 * * * *"}}}, d.code)
		time.Sleep(9 * time.Minute) // 04:41
		expect("deployed again, nothing is made up for", "04:40")
	})
}

// One run at a time: while one takes long, or is tried again, the next waits,
// and of those that were missed the latest runs.
func TestScheduleOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var mu sync.Mutex
		var under, most, runs int
		w.deploy("long", lode.Function{Schedules: []lode.Schedule{{Cron: "@every 10s"}}, Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error {
			mu.Lock()
			under++
			runs++
			most = max(most, under)
			mu.Unlock()
			done := make(chan struct{})
			time.AfterFunc(35*time.Second, func() { close(done) })
			err := g.block(done)
			mu.Lock()
			under--
			mu.Unlock()
			return err
		})
		s := durable(t, w, m, Config{})
		time.Sleep(171 * time.Second)
		synctest.Wait()
		if most != 1 || runs < 4 || runs > 5 {
			t.Errorf("%d at once, %d runs", most, runs)
		}
		s.Close()
	})
}

// The node dies between the record of a run and the run: it is made up for,
// once.
func TestScheduleCrashBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m, d := newWorld(), newMemory(), &dues{}
		w.deploy("tick", lode.Function{Schedules: []lode.Schedule{{Cron: "0 * * * *"}}}, d.code)
		m.fail = func(op, key string) error {
			if op == "queue put" {
				return lode.Errorf(lode.Unavailable, "the node is dying")
			}
			return nil
		}
		s := durable(t, w, m, Config{})
		time.Sleep(61 * time.Minute)
		s.Close()
		if got := d.take(); len(got) != 0 {
			t.Fatalf("ran for %v", got)
		}
		m.fail = nil
		for range 3 {
			s = durable(t, w, m, Config{})
			time.Sleep(time.Minute)
			s.Close()
		}
		if got := d.take(); len(got) != 1 || got[0] != "2000-01-01T01:00:00Z" {
			t.Errorf("ran for %v", got)
		}
	})
}

func FuzzPlan(f *testing.F) {
	for _, s := range []string{"* * * * *", "*/5 1-3 * * 1,2", "@every 1h", "@daily", "TZ=UTC", "0 0 30 2 *", "60 * * * *"} {
		f.Add(s, "Europe/Berlin")
	}
	f.Fuzz(func(t *testing.T, cron, zone string) {
		p, err := newPlan(lode.Schedule{Cron: cron, Zone: zone})
		if err != nil {
			return
		}
		now := at("2026-03-28T00:00:00Z")
		for range 20 {
			next := p.next(now)
			if next.IsZero() {
				return
			}
			if !next.After(now) {
				t.Fatalf("%q %s: after %s comes %s", cron, zone, now, next)
			}
			now = next
		}
	})
}
