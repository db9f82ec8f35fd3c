// Hello-go is the smallest function in Go: JSON in, JSON out, and a log line.
package main

import (
	"context"
	"fmt"
	"strings"

	"lode/sdk/go"
)

// Greeting is what greet answers.
type Greeting struct {
	Text     string `json:"text"`
	Revision string `json:"revision"`
}

func greet(ctx context.Context, name string) (Greeting, error) {
	if strings.TrimSpace(name) == "" {
		return Greeting{}, fmt.Errorf("a greeting needs a name")
	}
	fmt.Println("greeting", name)
	return Greeting{Text: "hello, " + name, Revision: lode.Self(ctx).Revision}, nil
}

func main() { lode.Handle(greet) }
