package placement

import (
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"lode"
)

// pictureOf reads a picture. A host is NAME*CORES[=BUSY], with a ! behind it
// where it is not eligible; a kind is KIND[@NEAR,NEAR]: and partitions, each
// HOST[*COUNT] and then /tTURNS /cCPU /bMIB /HOST=CALLS.
func pictureOf(t *testing.T, hosts string, kinds ...string) *Picture {
	t.Helper()
	p := &Picture{Near: map[string][]int{}, Blackout: 0.02, Bandwidth: 100e6, RTT: 200e-6}
	at := map[string]int{}
	num := func(s string) float64 {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, w := range strings.Fields(hosts) {
		w, gone := strings.CutSuffix(w, "!")
		w, busy, _ := strings.Cut(w, "=")
		name, cores, _ := strings.Cut(w, "*")
		h := Host{ID: lode.NodeID(name), Cores: num(cores), Eligible: !gone}
		if busy != "" {
			h.Busy = num(busy)
		}
		at[name] = len(p.Hosts)
		p.Hosts = append(p.Hosts, h)
	}
	for _, line := range kinds {
		kind, rest, _ := strings.Cut(line, ":")
		kind, near, ok := strings.Cut(kind, "@")
		if ok {
			for _, n := range strings.Split(near, ",") {
				p.Near[kind] = append(p.Near[kind], at[n])
			}
		}
		n := 0
		for _, w := range strings.Fields(rest) {
			f := strings.Split(w, "/")
			host, count, many := strings.Cut(f[0], "*")
			if !many {
				count = "1"
			}
			for range int(num(count)) {
				x := Part{ID: fmt.Sprintf("%s/%02d", kind, n), Kind: kind, Owner: at[host]}
				for _, o := range f[1:] {
					if name, rate, ok := strings.Cut(o, "="); ok {
						x.Callers = append(x.Callers, Caller{at[name], num(rate)})
						continue
					}
					switch o[0] {
					case 't':
						x.Turns = num(o[1:])
					case 'c':
						x.CPU = num(o[1:])
					case 'b':
						x.Bytes = int64(num(o[1:]) * (1 << 20))
					case 'f':
						x.Fixed = true
					}
				}
				p.Parts = append(p.Parts, x)
				n++
			}
		}
	}
	return p
}

// lies says how many partitions of each kind each host has.
func (p *Picture) lies() string {
	var out []string
	kinds := map[string]map[lode.NodeID]int{}
	for i := range p.Parts {
		x := &p.Parts[i]
		if kinds[x.Kind] == nil {
			kinds[x.Kind] = map[lode.NodeID]int{}
		}
		kinds[x.Kind][p.Hosts[x.Owner].ID]++
	}
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		w := k + ":"
		for i := range p.Hosts {
			w += fmt.Sprintf(" %s %d", p.Hosts[i].ID, kinds[k][p.Hosts[i].ID])
		}
		out = append(out, w)
	}
	return strings.Join(out, "; ")
}

func (m Move) String() string { return fmt.Sprintf("%s %s>%s", m.Part, m.From, m.To) }

// rounds rebalances until nothing moves for a while, every two seconds, and
// returns all moves.
func rounds(p *Picture, m *Ledger, from, to float64) (all []Move) {
	for now := from; now < to; now += 2 {
		for i := range p.Parts {
			p.Parts[i].Fixed = false
		}
		all = append(all, Rebalance(p, m, now)...)
	}
	return all
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		name, hosts string
		kinds       []string
		want        string // how they lie at the end
		moves       int
	}{
		{"two nodes join", "a*2 b*2 c*2", []string{"k: a*64"}, "k: a 22 b 21 c 21", 42},
		{"a node joins three", "a*2 b*2 c*2 d*2", []string{"k: a*22 b*21 c*21"}, "k: a 16 b 16 c 16 d 16", 16},
		{"by cores", "a*2 b*6", []string{"k: a*64"}, "k: a 16 b 48", 48},
		{"chance is left alone", "a*2 b*2 c*2", []string{"k: a*30 b*14 c*20"}, "k: a 30 b 14 c 20", 0},
		{"a node that cannot take any", "a*2 b*2! c*2", []string{"k: a*32"}, "k: a 16 b 0 c 16", 16},
		{"a node that should have none", "a*2 b*2!", []string{"k: a*3 b*2"}, "k: a 5 b 0", 2},
		{"nobody can take any", "a*2! b*2!", []string{"k: a*3 b*2"}, "k: a 3 b 2", 0},
		{"each kind by itself", "a*2 b*2", []string{"k: a*8", "l: a*4 b*4"}, "k: a 4 b 4; l: a 4 b 4", 4},
		{"many kinds of one partition", "a*2 b*2", []string{"k: a", "l: a", "m: a", "n: a"}, "k: a 0 b 1; l: a 0 b 1; m: a 1 b 0; n: a 1 b 0", 2},
		{"near one node", "a*2 b*2 c*2", []string{"k@b: a*4 b*4 c*4"}, "k: a 0 b 12 c 0", 8},
		{"near a zone", "a*2 b*2 c*2", []string{"k@b,c: a*9"}, "k: a 0 b 5 c 4", 9},
		{"near a node that is not there", "a*2 b*2!", []string{"k@b: a*9"}, "k: a 9 b 0", 0},
		{"fewer than nodes", "a*2 b*2 c*2", []string{"k: a*2"}, "k: a 1 b 1 c 0", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, m := pictureOf(t, c.hosts, c.kinds...), &Ledger{}
			moves := rounds(p, m, 0, 40)
			if got := p.lies(); got != c.want || len(moves) != c.moves {
				t.Errorf("%s after %d moves; want %s after %d", got, len(moves), c.want, c.moves)
			}
			if more := rounds(p, m, 40, 80); len(more) > 0 {
				t.Errorf("it goes on: %v", more)
			}
		})
	}
}

// TestSpreadOrder: at most so many begin at once, idle partitions and those
// without local callers first.
func TestSpreadOrder(t *testing.T) {
	p := pictureOf(t, "a*2 b*2", "k: a*2/t500/c0.1 a/b100 a/a=100/t1 a*28/t1 a*12")
	for i := range p.Parts {
		p.Parts[i].Fixed = i == 43
	}
	first := Rebalance(p, &Ledger{}, 0)
	if len(first) != spreadMost {
		t.Fatalf("%d moves at once", len(first))
	}
	for i, m := range first {
		n, _ := strconv.Atoi(m.Part[2:])
		if m.To != "b" || n < 4 || n == 43 || i < 11 && n < 32 {
			t.Errorf("move %d is %v", i, m)
		}
	}
}

func TestGain(t *testing.T) {
	for _, c := range []struct {
		name, hosts string
		kinds       []string
		want        string // the moves within two minutes
	}{
		{"nothing to gain", "a*2=1.5 b*2=1.5", []string{"k: a*4/t50/c0.3 b*4/t50/c0.3"}, "[]"},
		{"a busy node, an idle one", "a*2=1.96 b*2=0.2", []string{"k: a/t400/c1 a*3/t100/c0.3 b*4"}, "[k/00 a>b]"},
		{"the hot one would only take its load along", "a*2=1.96 b*2=0.2", []string{"k: a/t400/c1.9 a*3 b*4"}, "[]"},
		{"not to a node that takes none", "a*2=1.96 b*2=0.2!", []string{"k: a/t400/c1 a*3"}, "[]"},
		{"called from elsewhere", "a*2 b*2", []string{"k: a/t200/b=200 a*3 b*4"}, "[k/00 a>b]"},
		{"called from both", "a*2 b*2", []string{"k: a/t200/b=105/a=95 a*3 b*4"}, "[]"},
		{"called from here", "a*2 b*2", []string{"k: a/t200/a=200 a*3 b*4"}, "[]"},
		{"hardly ever called", "a*2 b*2", []string{"k: a/t3/b=3 a*3 b*4"}, "[]"},
		{"too large to move", "a*2 b*2", []string{"k: a/t200/b=200/b10000 a*3 b*4"}, "[]"},
		{"callers' node has no room to compute", "a*2 b*2=1.96", []string{"k: a/t200/c0.2/b=200 a*3 b*4"}, "[]"},
		{"the last ones stay", "a*2 b*2", []string{"k: a*4/t200/b=200 b*6"}, "[k/00 a>b]"},
		{"not from where it wants to be", "a*2 b*2", []string{"k@a: a*4/t200/b=200", "l: a*2 b*6"}, "[]"},
		{"the one that gains most first", "a*2 b*2", []string{"k: a/t100/b=100 a/t900/b=900 a*6 b*8"}, "[k/01 a>b k/00 a>b]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pictureOf(t, c.hosts, c.kinds...)
			if got := fmt.Sprint(rounds(p, &Ledger{}, 0, 240)); got != c.want {
				t.Errorf("moves %s, want %s", got, c.want)
			}
		})
	}
}

// TestOwed: a ledger says what speaks for a move before it is made.
func TestOwed(t *testing.T) {
	p, m := pictureOf(t, "a*2 b*2", "k: a/t20/b=20/b1 a*3 b*4"), &Ledger{}
	if moves := rounds(p, m, 0, 60); len(moves) > 0 {
		t.Fatalf("moves %v", moves)
	}
	o, ok := m.Owed("k/00", 60)
	if !ok || o.To != "b" || o.Sum <= 0 || o.Sum >= o.Cost || o.Gain <= 0 {
		t.Errorf("owed %+v, %v", o, ok)
	}
	if _, ok := m.Owed("k/01", 60); ok {
		t.Error("something is owed to a partition that nobody calls")
	}
}

// TestRebalanceLaws: on any picture nothing goes to a host that takes none, a
// partition moves once a call, and under the same load all ends, within one of
// each share where spreading began; and no gain takes another one back.
func TestRebalanceLaws(t *testing.T) {
	end := float64(longer(900, 7200))
	for seed := range uint64(longer(20, 1000)) {
		r := mrand.New(mrand.NewPCG(seed, 1))
		p, m := chancePicture(r), &Ledger{}
		ends := 0.0
		been := map[string][]lode.NodeID{}
		for now := 0.0; now < end; now += 2 {
			for i := range p.Parts {
				p.Parts[i].Fixed = false
			}
			moves := Rebalance(p, m, now)
			seen := map[string]bool{}
			for _, mv := range moves {
				i := slices.IndexFunc(p.Hosts, func(h Host) bool { return h.ID == mv.To })
				if !p.Hosts[i].Eligible || mv.From == mv.To || seen[mv.Part] {
					t.Fatalf("seed %d: %v", seed, mv)
				}
				seen[mv.Part] = true
				ends = now
				if mv.Why == Spread {
					continue // it may have taken one away that was best where it was
				}
				if slices.Contains(been[mv.Part], mv.To) {
					t.Fatalf("seed %d: %s goes back: %v, then %s", seed, mv.Part, been[mv.Part], mv.To)
				}
				been[mv.Part] = append(been[mv.Part], mv.From)
			}
		}
		if ends > end/6*5 {
			t.Errorf("seed %d: it still moves after %g s", seed, ends)
		}
		if b := newBalance(p, m, end); slices.ContainsFunc(p.Hosts, func(h Host) bool { return h.Eligible }) {
			for _, k := range b.kinds {
				if k.uneven() {
					t.Errorf("seed %d: %s is far off: %s", seed, k.kind, p.lies())
				}
			}
		}
	}
}

// longer is how many rounds a test makes: few, or with LODE_LONG=1 many.
func longer(few, many int) int {
	if os.Getenv("LODE_LONG") != "" {
		return many
	}
	return few
}

func chancePicture(r *mrand.Rand) *Picture {
	p := &Picture{Near: map[string][]int{}, Blackout: r.Float64() / 10, Bandwidth: 1e8, RTT: 200e-6}
	n := 1 + r.IntN(6)
	for i := range n {
		p.Hosts = append(p.Hosts, Host{ID: lode.NodeID(rune('a' + i)), Cores: float64(1 + r.IntN(8)), Eligible: r.IntN(5) > 0})
	}
	for k := range 1 + r.IntN(4) {
		kind := string(rune('k' + k))
		if r.IntN(4) == 0 {
			p.Near[kind] = []int{r.IntN(n)}
		}
		home := r.IntN(n)
		for i := range 1 + r.IntN(40) {
			x := Part{ID: fmt.Sprintf("%s/%d", kind, i), Kind: kind, Owner: home}
			if r.IntN(2) == 0 {
				x.Owner = r.IntN(n)
			}
			if r.IntN(3) == 0 {
				x.Turns = r.ExpFloat64() * 200
				x.CPU = x.Turns * r.Float64() * 1e-3
				x.Bytes = int64(r.ExpFloat64() * 1e6)
				for left := x.Turns; left > 1 && len(x.Callers) < 3; {
					c := Caller{r.IntN(n), left * r.Float64()}
					if !slices.ContainsFunc(x.Callers, func(o Caller) bool { return o.Host == c.Host }) {
						x.Callers = append(x.Callers, c)
					}
					left -= c.Rate
				}
			}
			p.Hosts[x.Owner].Busy += x.CPU
			p.Parts = append(p.Parts, x)
		}
	}
	return p
}
