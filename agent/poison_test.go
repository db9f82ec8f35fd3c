package agent

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
)

// mutate is the body of the verb write.
func mutate(kv ...string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(kv)/2))
	for i := 0; i < len(kv); i += 2 {
		b = append(b, 1)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(kv[i])))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(kv[i+1])))
		b = append(append(b, kv[i]...), kv[i+1]...)
	}
	return b
}

// TestPoisonKeys: keys of agents and of state are bytes, and no two are mixed up.
func TestPoisonKeys(t *testing.T) {
	w, n := one(t)
	w.kind("k", func(f *lode.Function) { f.Agent.Partitions = 1 })
	keys := []string{"x", "x\x00", "x\x00\x01", "x\x00\xff", "\x00", "\xff", "\xff\xff\xff", "\x01", "é", "e\u0301", "a/b/c", "../..", strings.Repeat("k", 512), " ", "\n", "*", ">", "x.y", "\u202e"}
	w.on("fill", func(g *guest) error {
		for i, k := range keys {
			if err := g.put(k, fmt.Sprint(g.key, "=", i)); err != nil {
				return err
			}
		}
		return g.put(strings.Repeat("\xff", maxKey), "long")
	})
	w.on("check", func(g *guest) error {
		for i, k := range keys {
			if v, err := g.get(k); err != nil || v != fmt.Sprint(g.key, "=", i) {
				return fmt.Errorf("%q is %q, %v", k, v, err)
			}
		}
		all, err := g.list()
		if err != nil || len(all) != 2*len(keys)+2 {
			return fmt.Errorf("%d keys, %v", len(all)/2, err)
		}
		for i := 2; i < len(all); i += 2 {
			if all[i] <= all[i-2] {
				return fmt.Errorf("%q behind %q", all[i], all[i-2])
			}
		}
		back, err := g.list(":reverse", "1")
		if err != nil || len(back) != len(all) || back[0] != all[len(all)-2] {
			return fmt.Errorf("backwards: %v", err)
		}
		for prefix, want := range map[string]int{"x": 5, "\xff": 3, "\xff\xff": 2, "x\x00": 3, "nothing": 0, "\x00": 1} {
			if got, err := g.list(":prefix", prefix); err != nil || len(got) != 2*want {
				return fmt.Errorf("prefix %q: %q, %v", prefix, got, err)
			}
		}
		for _, q := range [][]string{{":start", "z", ":end", "a"}, {":prefix", "a", ":start", "z"}, {":prefix", "x", ":end", "a"}, {":start", "z", ":end", "a", ":reverse", "1"}} {
			if got, err := g.list(q...); err != nil || len(got) != 0 {
				return fmt.Errorf("%q: %q, %v", q, got, err)
			}
		}
		if got, err := g.list(":start", "x\x00", ":end", "x\x00\xff"); err != nil || len(got) != 4 {
			return fmt.Errorf("a range: %q, %v", got, err)
		}
		if got, err := g.list(":limit", "2", ":start", "x"); err != nil || len(got) != 4 {
			return fmt.Errorf("a limit: %q, %v", got, err)
		}
		return nil
	})
	for _, k := range keys {
		n.call("k/"+k, "fill", "")
	}
	for range 2 {
		for _, k := range keys {
			n.call("k/"+k, "check", "")
		}
		n.restart()
	}
	for _, k := range []string{"", strings.Repeat("k", 513)} {
		if _, err := n.svc.Load().Call(t.Context(), &lode.AgentCall{Namespace: "ns", Kind: "k", Key: k, Method: "add"}); lode.KindOf(err) != lode.Invalid {
			t.Errorf("a key of %d bytes: %v", len(k), err)
		}
	}
}

// TestPoisonOperations: no body of an operation does more than fail.
func TestPoisonOperations(t *testing.T) {
	w, n := one(t)
	big := strings.Repeat("v", maxValue)
	refuse := func(g *guest, what string, err error, k lode.Kind) error {
		if lode.KindOf(err) != k {
			return fmt.Errorf("%s: %v, want %s", what, err, k)
		}
		return nil
	}
	w.on("poison", func(g *guest) error {
		for what, x := range map[string]struct {
			op    Op
			body  string
			pairs []string
			kind  lode.Kind
		}{
			"no verb":              {OpState, "", nil, lode.Invalid},
			"unknown verb":         {OpState, "", []string{":verb", "drop"}, lode.Invalid},
			"empty key":            {OpState, "x", []string{":verb", "put"}, lode.Invalid},
			"long key":             {OpState, "x", []string{":verb", "put", ":key", strings.Repeat("k", maxKey+1)}, lode.Invalid},
			"long key get":         {OpState, "", []string{":verb", "get", ":key", strings.Repeat("k", maxKey+1)}, lode.Invalid},
			"long key delete":      {OpState, "", []string{":verb", "delete", ":key", strings.Repeat("k", maxKey+1)}, lode.Invalid},
			"empty key delete":     {OpState, "", []string{":verb", "delete"}, lode.Invalid},
			"large value":          {OpState, big + "x", []string{":verb", "put", ":key", "k"}, lode.TooLarge},
			"write nothing":        {OpState, "", []string{":verb", "write"}, lode.Invalid},
			"write cut":            {OpState, string(mutate("a", "b"))[:12], []string{":verb", "write"}, lode.Invalid},
			"write more":           {OpState, string(mutate("a", "b")) + "x", []string{":verb", "write"}, lode.Invalid},
			"write of 4 billion":   {OpState, "\xff\xff\xff\xff\x01", []string{":verb", "write"}, lode.Invalid},
			"write kind":           {OpState, "\x01\x00\x00\x00\x09\x01\x00\x00\x00\x00\x00\x00\x00k", []string{":verb", "write"}, lode.Invalid},
			"write length":         {OpState, "\x01\x00\x00\x00\x01\xff\xff\xff\x7f\xff\xff\xff\xffk", []string{":verb", "write"}, lode.Invalid},
			"write empty key":      {OpState, string(mutate("", "b")), []string{":verb", "write"}, lode.Invalid},
			"mget cut":             {OpState, "\x02\x00\x00\x00\x01\x00\x00\x00k", []string{":verb", "mget"}, lode.Invalid},
			"mget of 4 billion":    {OpState, "\xff\xff\xff\xff", []string{":verb", "mget"}, lode.Invalid},
			"mget empty key":       {OpState, "\x01\x00\x00\x00\x00\x00\x00\x00", []string{":verb", "mget"}, lode.Invalid},
			"list limit":           {OpState, "", []string{":verb", "list", ":limit", "-1"}, lode.Invalid},
			"list limit word":      {OpState, "", []string{":verb", "list", ":limit", "many"}, lode.Invalid},
			"timer no name":        {OpTimer, "", []string{":verb", "set", ":after", "1"}, lode.Invalid},
			"timer name":           {OpTimer, "", []string{":verb", "set", ":after", "1", ":name", "\x01x"}, lode.Invalid},
			"timer long name":      {OpTimer, "", []string{":verb", "set", ":after", "1", ":name", strings.Repeat("n", 257)}, lode.Invalid},
			"timer no time":        {OpTimer, "", []string{":verb", "set", ":name", "t"}, lode.Invalid},
			"timer both":           {OpTimer, "", []string{":verb", "set", ":name", "t", ":at", "1", ":after", "1"}, lode.Invalid},
			"timer negative":       {OpTimer, "", []string{":verb", "set", ":name", "t", ":after", "-1"}, lode.Invalid},
			"timer far":            {OpTimer, "", []string{":verb", "set", ":name", "t", ":after", "99999999999999999"}, lode.Invalid},
			"timer verb":           {OpTimer, "", []string{":verb", "ring", ":name", "t"}, lode.Invalid},
			"send nowhere":         {OpSend, "", []string{":verb", "x"}, lode.Invalid},
			"send to function":     {OpSend, "", []string{":verb", "x", ":address", "k"}, lode.Invalid},
			"send no method":       {OpSend, "", []string{":address", "k/y"}, lode.Invalid},
			"send to unknown kind": {OpSend, "", []string{":verb", "x", ":address", "nokind/y"}, lode.NotFound},
			"send large":           {OpSend, big + "x", []string{":verb", "x", ":address", "k/y"}, lode.TooLarge},
			"send delay":           {OpSend, "", []string{":verb", "x", ":address", "k/y", ":delay", "soon"}, lode.Invalid},
			"call unknown kind":    {OpCall, "", []string{":verb", "x", ":address", "nokind/y"}, lode.NotFound},
			"call itself":          {OpCall, "", []string{":verb", "add", ":address", "k/" + g.key}, lode.Conflict},
			"accept":               {OpSocket, "", []string{":verb", "accept", ":socket", "a~1"}, lode.Invalid},
			"socket verb":          {OpSocket, "", []string{":verb", "shout", ":socket", "a~1"}, ""},
			"emit large":           {OpSocket, strings.Repeat("e", maxEvent+1), []string{":verb", "emit"}, lode.TooLarge},
		} {
			_, err := g.op(x.op, []byte(x.body), x.pairs...)
			if err := refuse(g, what, err, x.kind); err != nil {
				return err
			}
		}
		if err := g.put("big", big); err != nil {
			return err
		}
		if _, err := g.op(OpState, mutate("k1", "1", "k2", "2"), ":verb", "write"); err != nil {
			return err
		}
		return nil
	})
	n.call("k/x", "poison", "")
	n.restart()
	w.on("check", func(g *guest) error {
		all, err := g.list()
		if err != nil || len(all) != 6 || all[1] != big {
			return fmt.Errorf("%d keys, %v", len(all)/2, err)
		}
		return nil
	})
	n.call("k/x", "check", "")
}

// TestPoisonTurns: turns that are too large, that never end, that fail, that do
// not exist: each is refused by itself, and the agent goes on.
func TestPoisonTurns(t *testing.T) {
	w, n := one(t)
	w.kind("short", func(f *lode.Function) { f.Limits.Total = 300 * time.Millisecond })
	w.on("values", func(g *guest) error { // more than one message of the journal holds
		for i := range g.arg() {
			if err := g.put(fmt.Sprint("v", i), strings.Repeat("v", 60<<10)); err != nil {
				return err
			}
		}
		return nil
	})
	w.on("writes", func(g *guest) error {
		for i := range g.arg() {
			if err := g.put(fmt.Sprint(i), ""); err != nil {
				return err
			}
		}
		return nil
	})
	w.on("blobs", func(g *guest) error {
		for i := range g.arg() {
			if err := g.put(fmt.Sprint("b", i), strings.Repeat(string(rune('a'+i)), maxValue)); err != nil {
				return err
			}
		}
		return nil
	})
	w.on("letters", func(g *guest) error {
		for range g.arg() {
			if err := g.send("k/y", "add", strings.Repeat("1", 1000)); err != nil {
				return err
			}
		}
		return nil
	})
	w.on("hang", func(g *guest) error { <-g.ctx.Done(); return nil })
	w.on("large", func(g *guest) error { g.reply = make([]byte, 8<<20); return g.put("v", "large") })
	w.on("loud", func(g *guest) error { g.status, g.reply = 409, []byte("no"); return g.put("v", "never") })
	n.call("k/x", "add", 1)
	for _, c := range []struct {
		addr, verb, body string
		kind             lode.Kind
	}{
		{"k/x", "values", "100", lode.TooLarge},
		{"k/x", "writes", "100001", lode.Crashed},
		{"k/x", "letters", "4000", ""}, // 4 MB: below the bound, or TooLarge
		{"k/x", "letters", "4001", lode.Crashed},
		{"short/x", "hang", "", lode.Deadline},
		{"k/x", "fail", "", lode.Crashed},
		{"k/x", "nothing", "", lode.NotFound},
		{"none/x", "add", "", lode.NotFound},
	} {
		_, err := n.try(c.addr, c.verb, c.body)
		if c.kind != "" {
			if lode.KindOf(err) != c.kind {
				t.Errorf("%s %s %s: %v, want %s", c.addr, c.verb, c.body, err, c.kind)
			}
		} else if k := lode.KindOf(err); k != "" && k != lode.TooLarge {
			t.Errorf("%s %s %s: %v", c.addr, c.verb, c.body, err)
		}
		n.wants(strings.Replace(c.addr, "none", "k", 1), "add", 0, map[string]string{"k/x": "1"}[c.addr]+map[string]string{"short/x": "0", "none/x": "1"}[c.addr])
	}
	n.call("k/w", "writes", 100_000)
	n.call("k/b", "blobs", 20)
	if r := must(n.try("k/x", "large", ""))(t); len(r.Body) != 8<<20 {
		t.Errorf("an answer of %d bytes", len(r.Body))
	}
	if r := must(n.try("k/x", "loud", ""))(t); r.Status != 409 || string(r.Body) != "no" {
		t.Errorf("a refusal: %d %s", r.Status, r.Body)
	}
	n.wants("k/x", "peek", "", "large")
	n.restart()
	n.wants("k/x", "peek", "", "large")
	if b := n.call("k/w", "all", ""); strings.Count(b, " ") < 100_000 {
		t.Errorf("the keys of a large turn: %d bytes", len(b))
	}
}

// TestPoisonReads: a method that only reads cannot write, by any operation.
func TestPoisonReads(t *testing.T) {
	w, n := one(t)
	w.kind("k", func(f *lode.Function) { f.Agent.Read = []string{"sneak"} })
	w.on("sneak", func(g *guest) error {
		for what, x := range map[string][]string{"put": {":verb", "put", ":key", "k"}, "delete": {":verb", "delete", ":key", "n"}, "clear": {":verb", "clear"}, "remove": {":verb", "remove"}} {
			if _, err := g.op(OpState, nil, x...); lode.KindOf(err) != lode.Denied {
				return fmt.Errorf("%s: %v", what, err)
			}
		}
		if _, err := g.op(OpState, mutate("a", "b"), ":verb", "write"); lode.KindOf(err) != lode.Denied {
			return fmt.Errorf("write: %v", err)
		}
		if err := g.timer("t", time.Second, "add", ""); lode.KindOf(err) != lode.Denied {
			return fmt.Errorf("timer: %v", err)
		}
		if err := g.send("k/y", "add", "1"); lode.KindOf(err) != lode.Denied {
			return fmt.Errorf("send: %v", err)
		}
		if _, err := g.op(OpSocket, nil, ":verb", "emit"); lode.KindOf(err) != lode.Denied {
			return fmt.Errorf("emit: %v", err)
		}
		if _, err := g.op(OpState, nil, ":verb", "sync"); err != nil {
			return err
		}
		return nil
	})
	n.call("k/x", "add", 1)
	n.call("k/x", "sneak", "")
	n.wants("k/x", "look", "", "1")
}

// TestCycles: an agent that is called by what it waits for answers at once;
// two that wait for each other end at their deadline, which names the other.
func TestCycles(t *testing.T) {
	w, n := one(t)
	w.kind("short", func(f *lode.Function) { f.Limits.Total = time.Second })
	w.on("via", func(g *guest) error { // body: addresses, through which it goes
		next, rest, _ := strings.Cut(string(g.body), " ")
		if next == "" {
			_, err := g.add("n", 1)
			return err
		}
		verb := "via"
		b, _, err := g.call(next, verb, rest)
		if err != nil {
			g.status, g.reply = 409, []byte(lode.KindOf(err))
			if k := lode.KindOf(err); k == lode.Deadline {
				g.reply = []byte(err.Error())
			}
			return nil
		}
		g.say(b)
		return nil
	})
	for _, c := range []string{"k/a", "k/b k/a", "k/b k/c k/d k/a", "k/b k/b"} {
		r, err := n.try("k/a", "via", c)
		if err != nil || string(r.Body) != "conflict" {
			t.Errorf("%s: %v %v", c, r, err)
		}
	}
	// a -> b and b -> a at the same time.
	var both, met sync.WaitGroup
	met.Add(2)
	w.on("meet", func(g *guest) error {
		met.Done()
		met.Wait()
		_, _, err := g.call(string(g.body), "add", "1")
		if err == nil {
			return fmt.Errorf("it went through")
		}
		return err
	})
	var errs [2]error
	began := time.Now()
	for i, c := range []string{"a b", "b a"} {
		from, to, _ := strings.Cut(c, " ")
		both.Go(func() { _, errs[i] = n.try("short/"+from, "meet", "short/"+to) })
	}
	both.Wait()
	if time.Since(began) > 15*time.Second {
		t.Error("it took", time.Since(began))
	}
	for _, err := range errs {
		if err == nil {
			t.Error("no error")
		}
		t.Log(err)
	}
	n.wants("short/a", "add", 1, "1")
	n.wants("short/b", "add", 1, "1")
}

// TestReentrantChain: what was written before a call is seen by the turn that
// comes back through it, and each of them takes effect once.
func TestReentrantChain(t *testing.T) {
	w, n := one(t)
	w.kind("c", func(f *lode.Function) { f.Agent.Reentrant = lode.ReentrantChain })
	w.on("outer", func(g *guest) error {
		if _, err := g.add("n", 1); err != nil {
			return err
		}
		if _, _, err := g.call("c/b", "bounce", g.t.headGet(":address")); err != nil {
			return err
		}
		m, err := g.num("n")
		if err != nil || m != 11 {
			return fmt.Errorf("n is %d after the call: %v", m, err)
		}
		n, err := g.add("n", 100)
		g.say(n)
		return err
	})
	w.on("bounce", func(g *guest) error {
		_, _, err := g.call(string(g.body), "lazy", "10")
		return err
	})
	w.on("lazy", func(g *guest) error {
		m, err := g.num("n")
		time.Sleep(time.Millisecond) // others may come meanwhile
		if err != nil {
			return err
		}
		return g.put("n", fmt.Sprint(m+g.arg()))
	})
	n.wants("c/a", "outer", "", "111")
	n.restart()
	n.wants("c/a", "get", "", "111")
	// Two calls of one turn that come back at the same time are one after another.
	w.on("wide", func(g *guest) error {
		var all sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			all.Go(func() { _, _, errs[i] = g.call(fmt.Sprint("c/w", i), "bounce", "c/wide") })
		}
		all.Wait()
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
		n, err := g.num("n")
		g.say(n)
		return err
	})
	for i := range 20 {
		n.wants("c/wide", "wide", "", fmt.Sprint(80*(i+1)))
	}
}

func (t *Turn) headGet(key string) string { return (&lode.Message{Head: t.Head}).Get(key) }
