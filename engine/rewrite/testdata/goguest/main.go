// The Go guest of the tests and benchmarks.
package main

import (
	"encoding/json"
	"sort"
	"strings"
)

type record struct {
	Name string            `json:"name"`
	Age  int               `json:"age"`
	Tags []string          `json:"tags"`
	More map[string]string `json:"more"`
}

//go:wasmexport jsonwork
func jsonwork(rounds uint32) uint32 {
	var total uint32
	in := []byte(`{"name":"a name","age":42,"tags":["x","yy","zzz"],"more":{"k1":"v1","k2":"v2"}}`)
	for range rounds {
		var r record
		if json.Unmarshal(in, &r) != nil {
			return 0
		}
		out, _ := json.Marshal(r)
		total += uint32(len(out))
	}
	return total
}

//go:wasmexport textwork
func textwork(rounds uint32) uint32 {
	text := strings.Repeat("the quick brown fox jumps over the lazy dog again and again ", 50)
	var total uint32
	for range rounds {
		words := map[string]int{}
		for _, w := range strings.Fields(text) {
			words[strings.ToUpper(w)]++
		}
		keys := make([]string, 0, len(words))
		for k := range words {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		total += uint32(len(strings.Join(keys, ","))) + uint32(words["FOX"])
	}
	return total
}

//go:wasmexport sieve
func sieve(rounds uint32) uint32 {
	const n = 1 << 16
	var total uint32
	for range rounds {
		composite := make([]bool, n)
		for i := 2; i < n; i++ {
			if composite[i] {
				continue
			}
			total++
			for j := 2 * i; j < n; j += i {
				composite[j] = true
			}
		}
	}
	return total
}

//go:wasmexport recurse
func recurse(depth uint32) uint32 {
	if depth == 0 {
		return 0
	}
	return recurse(depth-1) + 1
}

func main() {}
