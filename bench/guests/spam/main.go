// Bag of words of ham and spam, twice: as a job over the mails where they lie,
// and as the function to which each shard is brought over HTTP. A mail's label
// is in its name: easy-ham-1/..., spam-2/...
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"lode/sdk/go"
)

func main() {
	lode.Job(count, lode.Counts.Merge)
	lode.Handle(fetchCount)
}

func count(ctx context.Context, s *lode.Shard) (lode.Counts, error) {
	ham, spam := lode.Counts{}, lode.Counts{}
	for name, mail := range s.Files() {
		if strings.Contains(name, "ham-") {
			ham.AddWords(mail)
		} else {
			spam.AddWords(mail)
		}
	}
	return labelled(ham, spam), nil
}

func labelled(ham, spam lode.Counts) lode.Counts {
	all := make(lode.Counts, len(ham)+len(spam))
	for word, n := range ham {
		all["ham "+word] = n
	}
	for word, n := range spam {
		all["spam "+word] = n
	}
	return all
}

// Work is where a shard and the borders of its mails are fetched from, and
// where its counts go.
type Work struct {
	Get, Put string
	Index    struct {
		Names []string `json:"names"`
		Ends  []int    `json:"ends"`
	}
}

// Done is what one invocation of fetchCount moved.
type Done struct{ In, Out int }

func fetchCount(ctx context.Context, w Work) (Done, error) {
	shard, err := transfer(ctx, "GET", w.Get, nil)
	if err != nil {
		return Done{}, err
	}
	ham, spam, from := lode.Counts{}, lode.Counts{}, 0
	for i, name := range w.Index.Names {
		mail := shard[from:w.Index.Ends[i]]
		from = w.Index.Ends[i]
		if strings.Contains(name, "ham-") {
			ham.AddWords(mail)
		} else {
			spam.AddWords(mail)
		}
	}
	partial, err := json.Marshal(labelled(ham, spam))
	if err != nil {
		return Done{}, err
	}
	_, err = transfer(ctx, "PUT", w.Put, partial)
	return Done{len(shard), len(partial)}, err
}

func transfer(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := lode.Fetch().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s answered %s", method, resp.Status)
	}
	return got, err
}
