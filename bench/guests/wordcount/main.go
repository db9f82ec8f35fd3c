// Word count, twice: as a job that goes to the shards, and as the function of
// first-generation serverless, to which each shard is brought over HTTP.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"lode/sdk/go"
)

func main() {
	lode.Job(count, lode.Counts.Merge)
	lode.Handle(fetchCount)
}

func count(_ context.Context, s *lode.Shard) (lode.Counts, error) {
	c := lode.Counts{}
	for file := range s.Records() {
		c.AddWords(file)
	}
	return c, nil
}

// Work is where a shard is fetched from, where its files end, and where its
// counts go.
type Work struct {
	Get, Put string
	Index    struct {
		Ends []int `json:"ends"`
	}
}

// Done is what one invocation of fetchCount moved.
type Done struct{ In, Out int }

func fetchCount(ctx context.Context, w Work) (Done, error) {
	shard, err := transfer(ctx, "GET", w.Get, nil)
	if err != nil {
		return Done{}, err
	}
	c, from := lode.Counts{}, 0
	for _, end := range w.Index.Ends {
		c.AddWords(shard[from:end])
		from = end
	}
	partial, err := json.Marshal(c)
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
