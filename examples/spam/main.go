// Spam is a bag of words in two steps. The job train counts the words of ham
// and of spam mails, where the mails lie; its result becomes a dataset. The
// function classify reads that dataset and judges a text by it.
package main

import (
	"context"
	"encoding/json"
	"math"
	"strings"

	"lode/sdk/go"
)

// Model is how often each word was seen, by label.
type Model map[string]lode.Counts

// train looks at one shard of mails. A mail's label is in its file's name.
func train(_ context.Context, s *lode.Shard) (Model, error) {
	m := Model{"ham": {}, "spam": {}}
	for name, mail := range s.Files() {
		label := "ham"
		if strings.Contains(name, "spam") {
			label = "spam"
		}
		m[label].AddWords([]byte(strings.ToLower(string(mail))))
	}
	return m, nil
}

func merge(a, b Model) Model {
	return Model{"ham": lode.Counts.Merge(orEmpty(a["ham"]), b["ham"]), "spam": lode.Counts.Merge(orEmpty(a["spam"]), b["spam"])}
}

func orEmpty(c lode.Counts) lode.Counts {
	if c == nil {
		return lode.Counts{}
	}
	return c
}

// Verdict is what classify answers.
type Verdict struct {
	Spam  bool    `json:"spam"`
	Score float64 `json:"score"` // log of how much likelier spam is than ham
}

// classify judges a text by the model that the job left in the dataset.
func classify(ctx context.Context, text string) (Verdict, error) {
	m, err := load(ctx, lode.Env(ctx, "MODEL", "spam-model"))
	if err != nil {
		return Verdict{}, err
	}
	ham, spam := total(m["ham"]), total(m["spam"])
	score := 0.0
	for word := range strings.FieldsSeq(strings.ToLower(text)) {
		score += math.Log(float64(m["spam"][word]+1)/float64(spam+1)) - math.Log(float64(m["ham"][word]+1)/float64(ham+1))
	}
	return Verdict{Spam: score > 0, Score: math.Round(score*100) / 100}, nil
}

func load(ctx context.Context, name string) (Model, error) {
	set, err := lode.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	var text []byte
	for i, shard := range set.Shards {
		b := make([]byte, shard.Bytes)
		if _, err := set.ReadAt(ctx, i, b, 0); err != nil {
			return nil, err
		}
		text = append(text, b...)
	}
	var m Model
	return m, json.Unmarshal(text, &m)
}

func total(c lode.Counts) (n int) {
	for _, k := range c {
		n += k
	}
	return n
}

func main() {
	lode.JobNamed("train", train, merge)
	lode.HandleNamed("classify", classify)
}
