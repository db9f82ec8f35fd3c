package build

import (
	"encoding/json"
	"testing"

	"lode"
)

func TestAgentDescription(t *testing.T) {
	h := newAgentHost(t, "testdata/agents.js")
	var d lode.Description
	if err := json.Unmarshal(h.guest.Describe, &d); err != nil {
		t.Fatal(err)
	}
	b, _ := json.MarshalIndent(d.Kinds, "", " ")
	t.Logf("%s", b)
}

func TestAgentTurns(t *testing.T) {
	h := newAgentHost(t, "testdata/agents.js")
	for _, s := range []struct{ at, verb, args, want string }{
		{"cart/alice", "add", `["book", 2]`, "2"},
		{"cart/alice", "add", `["book", 2]`, "4"},
	} {
		if got := h.call(s.at, s.verb, s.args); got != s.want {
			t.Errorf("%s %s%s = %s, want %s; %q", s.at, s.verb, s.args, got, s.want, h.log)
		}
	}
}
