// Says to the address in MARK that it ran: with the body of its request behind
// it. Whoever listens there counts how often each piece of work was done.
package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"lode/sdk/go"
)

func main() { lode.Handle(mark) }

func mark(ctx context.Context, id string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, lode.Env(ctx, "MARK", "")+"/"+id, strings.NewReader(""))
	if err != nil {
		return "", err
	}
	resp, err := lode.Fetch().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("answered %s", resp.Status)
	}
	return id, nil
}
