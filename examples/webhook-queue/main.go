// Webhook-queue takes webhooks over HTTP, answers at once, and does the work
// from a durable queue: with retries, and dead letters for what keeps failing.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"lode/sdk/go"
)

// Hook is one message of the queue.
type Hook struct {
	Source string          `json:"source"`
	Event  json.RawMessage `json:"event"`
}

// hook answers POST /hooks/{source}. 202 says that the message is durable. A
// sender that repeats itself with the same Idempotency-Key is heard once.
func hook(w http.ResponseWriter, r *http.Request) {
	h := Hook{Source: r.PathValue("source")}
	if err := json.NewDecoder(r.Body).Decode(&h.Event); err != nil {
		http.Error(w, "the body is not JSON", http.StatusBadRequest)
		return
	}
	var opts []lode.PutOption
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		opts = append(opts, lode.Key(key))
	}
	id, err := lode.Put(r.Context(), "hooks", h, opts...)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintln(w, id)
}

// worker gets up to five messages at once. Those that it names in Retry come
// again; after three deliveries they are dead letters.
func worker(_ context.Context, b lode.Batch) (lode.Retry, error) {
	var again lode.Retry
	for _, m := range b.Messages {
		if err := work(m); err != nil {
			fmt.Printf("attempt %d failed: %v\n", m.Attempt, err)
			again.IDs = append(again.IDs, m.ID)
		}
	}
	return again, nil
}

func work(m lode.Message) error {
	var h Hook
	if err := m.JSON(&h); err != nil {
		return err
	}
	if h.Source == "broken" {
		return fmt.Errorf("the system behind %s does not answer", h.Source)
	}
	fmt.Printf("done: %s %s\n", h.Source, h.Event)
	return nil
}

// undertaker consumes the dead letters.
func undertaker(_ context.Context, b lode.Batch) error {
	for _, m := range b.Messages {
		fmt.Printf("given up: %s\n", m.Body)
	}
	return nil
}

func main() {
	lode.HandleNamed("hook", http.HandlerFunc(hook))
	lode.HandleNamed("worker", worker)
	lode.HandleNamed("undertaker", undertaker)
}
