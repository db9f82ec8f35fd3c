package wasm

import (
	"slices"
	"testing"

	"lode/sdk"
)

// TestIsScript: only the engine as it is shipped gets the larger stack.
func TestIsScript(t *testing.T) {
	js, err := sdk.QuickJS()
	if err != nil {
		t.Fatal(err)
	}
	custom := []byte{0, 3, 1, 'x', 7}
	changed := slices.Clone(js)
	changed[len(changed)/2] ^= 1
	for name, c := range map[string]struct {
		module []byte
		want   bool
	}{
		"the engine":              {js, true},
		"with a program":          {slices.Concat(js, custom), true},
		"with two":                {slices.Concat(js, custom, custom), true},
		"with code":               {slices.Concat(js, []byte{10, 1, 0}), false},
		"with half a section":     {slices.Concat(js, custom[:3]), false},
		"with a byte":             {slices.Concat(js, custom[:1]), false},
		"changed":                 {changed, false},
		"cut":                     {js[:len(js)-1], false},
		"nothing":                 {nil, false},
		"a section of huge bytes": {slices.Concat(js, []byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}), false},
	} {
		if got := isScript(c.module); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
