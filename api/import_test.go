package api

import (
	"encoding/json"
	"strings"
	"testing"
)

// FuzzImportLines: what is handed on has a key that can be an agent's, in
// batches of their bound, and nothing is handed on twice or lost.
func FuzzImportLines(f *testing.F) {
	f.Add(`{"key":"a","state":[{"k":"YQ==","v":""}],"timers":[{"name":"t","at":"2026-01-02T03:04:05Z"}]}` + "\n" + `{"end":{"lines":1}}`)
	f.Add("{}")
	f.Add(`{"key":"a"}` + "\n\n" + `{"error":{"kind":"internal"}}`)
	f.Add(strings.Repeat(`{"key":"a","part":1}`+"\n", 130))
	f.Fuzz(func(t *testing.T, s string) {
		handed := int64(0)
		sum, err := importLines(strings.NewReader(s), "cart", func(batch []AgentDump) (Imported, error) {
			if len(batch) == 0 || len(batch) > importBatch {
				t.Errorf("a batch of %d", len(batch))
			}
			for _, d := range batch {
				if CheckKey("cart", d.Key) != nil {
					t.Errorf("the key %q", d.Key)
				}
			}
			handed += int64(len(batch))
			return Imported{Agents: int64(len(batch))}, nil
		})
		if sum.Agents != handed {
			t.Errorf("%d were handed on, and %d counted", handed, sum.Agents)
		}
		lines := int64(0)
		for line := range strings.Lines(s) {
			var l exportLine
			if json.Unmarshal([]byte(line), &l) == nil && l.End == nil && l.AgentDump != nil {
				lines++
			}
		}
		if err == nil && handed != lines {
			t.Errorf("%d of %d lines were handed on", handed, lines)
		}
	})
}
