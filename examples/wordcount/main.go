// Wordcount is a job with a merge of its own: each shard's words are counted
// where the shard lies, and two partial results are merged by the guest.
package main

import (
	"context"
	"strings"

	"lode/sdk/go"
)

// Stats is a partial result, and the whole one. Its zero value changes nothing
// in a merge, and the order of merges does not matter.
type Stats struct {
	Lines   int         `json:"lines"`
	Longest string      `json:"longest"` // the first of the longest words in the alphabet
	Words   lode.Counts `json:"words"`
}

func count(_ context.Context, s *lode.Shard) (Stats, error) {
	out := Stats{Words: lode.Counts{}}
	for line := range s.Records() {
		out.Lines++
		for word := range strings.FieldsSeq(strings.ToLower(string(line))) {
			out.Words[word]++
			out.Longest = longer(out.Longest, word)
		}
	}
	return out, nil
}

func merge(a, b Stats) Stats {
	return Stats{Lines: a.Lines + b.Lines, Longest: longer(a.Longest, b.Longest), Words: a.Words.Merge(b.Words)}
}

func longer(a, b string) string {
	if len(b) > len(a) || len(b) == len(a) && b < a {
		return b
	}
	return a
}

func main() { lode.Job(count, merge) }
