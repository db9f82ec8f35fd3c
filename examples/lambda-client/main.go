// Lambda-client is a handler as it is written for aws-lambda-go; only the
// last line differs. AWS's SDKs and command can call it.
package main

import (
	"context"
	"errors"

	"lode/sdk/go"
)

// Order is the event.
type Order struct {
	ID    string `json:"id"`
	Items []Item `json:"items"`
}

// Item is one line of an order.
type Item struct {
	Price int `json:"price"` // cents
	Count int `json:"count"`
}

// Receipt is the answer.
type Receipt struct {
	ID    string `json:"id"`
	Total int    `json:"total"` // cents
}

// ErrEmpty is what an order without items gets.
var ErrEmpty = errors.New("the order is empty")

func handle(_ context.Context, o Order) (Receipt, error) {
	if len(o.Items) == 0 {
		return Receipt{}, ErrEmpty
	}
	r := Receipt{ID: o.ID}
	for _, i := range o.Items {
		r.Total += i.Price * i.Count
	}
	return r, nil
}

func main() { lode.Handle(handle) } // was: lambda.Start(handle)
