package words

import (
	"bytes"
	"context"

	"golang.org/x/sync/errgroup"

	"lode"
)

// Filter says which words to keep. It must answer the same for a word
// whenever it is asked. Implementations are safe for concurrent use.
type Filter interface {
	// Keep returns one answer for each word. The words are distinct, without
	// white space, and valid until it returns.
	Keep(ctx context.Context, words [][]byte) ([]bool, error)
}

// batchBytes is the size of one question: large enough to hide the cost of a
// call, small enough for a guest's buffers.
const batchBytes = 256 << 10

// Apply keeps the words that f keeps, asking once for each distinct word, with
// at most limit questions at once. c is not used again.
func (c *Counts) Apply(ctx context.Context, f Filter, limit int) (*Counts, error) {
	keep := make([]bool, c.Len())
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, limit))
	for from := 0; from < c.Len() && gctx.Err() == nil; {
		to, size := from, 0
		var batch [][]byte
		for ; to < c.Len() && size < batchBytes; to++ {
			word := c.table.Key(to)
			batch = append(batch, word)
			size += len(word) + 1
		}
		answers := keep[from:to]
		g.Go(func() error {
			got, err := f.Keep(gctx, batch)
			if err != nil {
				return err
			}
			if len(got) != len(batch) {
				return lode.Errorf(lode.Crashed, "the filter answered for %d of %d words", len(got), len(batch))
			}
			copy(answers, got)
			return nil
		})
		from = to
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, lode.Errorf(lode.Cancelled, "filter words: %w", err)
	}
	return c.Keep(keep), nil
}

// Question is a batch of words as a guest gets it: one a line.
func Question(words [][]byte) []byte {
	return append(bytes.Join(words, []byte{'\n'}), '\n')
}

// Answer reads a guest's answer to a Question: one byte for each word, 1 to
// keep it and 0 to drop it, in order; white space between them is passed over.
func Answer(body []byte, words int) ([]bool, error) {
	keep := make([]bool, 0, words)
	for _, x := range body {
		switch {
		case x == '0' || x == '1':
			keep = append(keep, x == '1')
		case x != ' ' && x-'\t' >= 5:
			return nil, lode.Errorf(lode.Crashed, "the filter answered %.40q", body).WithHint("answer one character a word: 1 to keep it, 0 to drop it")
		}
	}
	if len(keep) != words {
		return nil, lode.Errorf(lode.Crashed, "the filter answered for %d of %d words", len(keep), words).WithHint("answer one character a word: 1 to keep it, 0 to drop it")
	}
	return keep, nil
}
