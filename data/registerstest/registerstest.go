// Package registerstest is the contract of data.Registers as tests: every
// implementation, the one in memory included, passes Registers. Only tests
// import it.
package registerstest

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"

	"lode"
	"lode/data"
)

// Registers checks an implementation. fresh returns empty registers.
func Registers(t *testing.T, fresh func(t *testing.T) data.Registers) {
	for name, check := range map[string]func(*testing.T, data.Registers){
		"swap": swap, "delete": remove, "list": list, "many at once": manyAtOnce,
	} {
		t.Run(name, func(t *testing.T) { check(t, fresh(t)) })
	}
}

// lost fails the test unless err says that somebody else was first.
func lost(t *testing.T, err error) {
	t.Helper()
	if k := lode.KindOf(err); k != lode.Precondition && k != lode.Conflict {
		t.Fatalf("error kind %q (%v), want precondition or conflict", k, err)
	}
}

func set(t *testing.T, r data.Registers, key, value string, expect uint64) uint64 {
	t.Helper()
	rev, err := r.Swap(t.Context(), key, []byte(value), expect)
	if err != nil || rev == 0 {
		t.Fatalf("Swap(%s) = %d, %v", key, rev, err)
	}
	return rev
}

func want(t *testing.T, r data.Registers, key, value string, rev uint64) {
	t.Helper()
	got, at, ok, err := r.Get(t.Context(), key)
	if err != nil || !ok || string(got) != value || at != rev {
		t.Fatalf("Get(%s) = %q, %d, %v, %v; want %q, %d", key, got, at, ok, err, value, rev)
	}
}

func swap(t *testing.T, r data.Registers) {
	if _, _, ok, err := r.Get(t.Context(), "ns/a"); ok || err != nil {
		t.Fatalf("a new register: %v, %v", ok, err)
	}
	first := set(t, r, "ns/a", "1", 0)
	_, err := r.Swap(t.Context(), "ns/a", []byte("x"), 0)
	lost(t, err)
	second := set(t, r, "ns/a", "2", first)
	_, err = r.Swap(t.Context(), "ns/a", []byte("x"), first)
	lost(t, err)
	_, err = r.Swap(t.Context(), "ns/b", []byte("x"), second)
	lost(t, err)
	want(t, r, "ns/a", "2", second)
}

// remove: a register made anew has another revision, so that a swap that
// expects the old one fails.
func remove(t *testing.T, r data.Registers) {
	if err := r.Delete(t.Context(), "ns/none"); err != nil {
		t.Fatalf("deleting a missing register: %v", err)
	}
	first := set(t, r, "ns/a", "1", 0)
	if err := r.Delete(t.Context(), "ns/a"); err != nil {
		t.Fatal(err)
	}
	if _, _, ok, err := r.Get(t.Context(), "ns/a"); ok || err != nil {
		t.Fatalf("a deleted register: %v, %v", ok, err)
	}
	_, err := r.Swap(t.Context(), "ns/a", []byte("x"), first)
	lost(t, err)
	second := set(t, r, "ns/a", "2", 0)
	if second == first {
		t.Fatalf("revision %d was used again", first)
	}
	_, err = r.Swap(t.Context(), "ns/a", []byte("x"), first)
	lost(t, err)
}

func list(t *testing.T, r data.Registers) {
	for _, k := range []string{"b/2", "a/1", "b/1", "-gone/b/3", "bb/1"} {
		set(t, r, k, "value of "+k, 0)
	}
	for prefix, keys := range map[string][]string{"": {"-gone/b/3", "a/1", "b/1", "b/2", "bb/1"}, "b/": {"b/1", "b/2"}, "-gone/": {"-gone/b/3"}, "c/": nil} {
		regs, err := r.List(t.Context(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, reg := range regs {
			got = append(got, reg.Key)
			want(t, r, reg.Key, string(reg.Value), reg.Rev)
		}
		if !slices.Equal(got, keys) {
			t.Errorf("List(%q) = %q, want %q", prefix, got, keys)
		}
	}
}

// manyAtOnce counts to twenty by compare-and-swap from four sides.
func manyAtOnce(t *testing.T, r data.Registers) {
	set(t, r, "ns/n", "0", 0)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for done := 0; done < 5; {
				value, rev, _, err := r.Get(t.Context(), "ns/n")
				if err != nil {
					t.Error(err)
					return
				}
				n, err := strconv.Atoi(string(value))
				if err != nil {
					t.Error(err)
					return
				}
				_, err = r.Swap(t.Context(), "ns/n", []byte(fmt.Sprint(n+1)), rev)
				switch lode.KindOf(err) {
				case "":
					done++
				case lode.Precondition, lode.Conflict:
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if value, _, _, err := r.Get(t.Context(), "ns/n"); err != nil || string(value) != "20" {
		t.Errorf("counted to %s, %v", value, err)
	}
}
